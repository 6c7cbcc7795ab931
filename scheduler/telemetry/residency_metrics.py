"""Metrics of models that are loaded on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

LABELS = ["model", "backend"]


@dataclass
class ModelLoads:
    """Of one model on one backend, since the control plane's start."""

    loads: int = 0
    load_seconds: float = 0.0
    failures: int = 0
    unloads: int = 0
    unload_failures: int = 0


@dataclass(frozen=True)
class ResidencyScope:
    """What a scrape reads; nothing where residency is off. The states are by model."""

    loads: Mapping[tuple[str, str], ModelLoads] = field(default_factory=dict)
    resident_bytes: Mapping[str, int] = field(default_factory=dict)
    budget_bytes: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)  # how many models, by state
    external_changes: Mapping[str, int] = field(default_factory=dict)  # by backend


def residency_families(scope: ResidencyScope) -> Iterator[Metric]:
    loads = SummaryMetricFamily(
        "infersched_model_load_seconds", "Loads on demand and how long they took.", labels=LABELS
    )
    total = CounterMetricFamily(
        "infersched_model_loads", "Models loaded for requests, or as pinned.", labels=LABELS
    )
    failures = CounterMetricFamily(
        "infersched_model_load_failures", "Such loads that failed.", labels=LABELS
    )
    unloads = CounterMetricFamily(
        "infersched_model_unloads", "Models unloaded to make room, or unused.", labels=LABELS
    )
    kept = CounterMetricFamily(
        "infersched_model_unload_failures", "Models that did not leave in time.", labels=LABELS
    )
    for labels, counted in list(scope.loads.items()):
        loads.add_metric(labels, counted.loads, counted.load_seconds)
        total.add_metric(labels, counted.loads)
        failures.add_metric(labels, counted.failures)
        unloads.add_metric(labels, counted.unloads)
        kept.add_metric(labels, counted.unload_failures)
    external = CounterMetricFamily(
        "infersched_external_model_changes",
        "Loads and unloads that somebody else did.",
        labels=["backend"],
    )
    for address, count in scope.external_changes.items():
        external.add_metric([address], count)
    yield from (loads, total, failures, unloads, kept, external)
    resident = GaugeMetricFamily(
        "infersched_device_resident_bytes", "Known weights of loaded models.", labels=["device"]
    )
    for device, size in scope.resident_bytes.items():
        resident.add_metric([device], size)
    budget = GaugeMetricFamily(
        "infersched_device_residency_budget_bytes", "What weights may have.", labels=["device"]
    )
    for device, size in scope.budget_bytes.items():
        budget.add_metric([device], size)
    states = GaugeMetricFamily(
        "infersched_models_by_residency", "Models by what became of them.", labels=["state"]
    )
    for state, count in scope.states.items():
        states.add_metric([state], count)
    yield from (resident, budget, states)
