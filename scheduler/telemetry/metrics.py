"""Prometheus metrics, read from the counters page at scrape.

A scrape touches only the models and backends of the catalog, asks the data plane nothing and keeps
nothing: the numbers are since the start of the data plane, which Prometheus takes as a reset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from scheduler import __version__
from scheduler._native.counters import DURATION_BOUNDS_NS, ROW_BOUNDS, CountersPage
from scheduler.telemetry.device_metrics import DeviceScope, device_families
from scheduler.telemetry.residency_metrics import ResidencyScope, residency_families

DURATION_BOUNDS = [repr(bound / 1e9) for bound in DURATION_BOUNDS_NS] + ["+Inf"]
ROW_BOUND_TEXTS = [str(bound) for bound in ROW_BOUNDS] + ["+Inf"]
MODEL = ["model", "version"]

# Field of the page -> (name without prefix, help), one sample a model version.
_MODEL_GAUGES = {
    "queued_requests": ("queue_depth", "Requests that wait in the queue."),
    "queued_rows": ("queue_rows", "Rows that wait in the queue."),
    "queued_bytes": ("queue_bytes", "Request bytes that wait in the queue."),
    "in_flight": ("inflight_requests", "Admitted requests that are not answered."),
    "inflight_batches": ("inflight_batches", "Batches sent to backends and not answered."),
}
_MODEL_COUNTERS = {
    "batches": ("batches", "Batches dispatched."),
    "batch_rows_capacity": ("batch_rows_capacity", "Sum of the batch limits of these batches."),
    "retried_batches": ("retries", "Batches dispatched again after a failure."),
    "bisected_batches": ("bisected_batches", "Failed batches that were run again in halves."),
    "memory_limited_batches": ("memory_limited_batches", "Batches limited by device memory."),
    "out_of_memory_replies": ("out_of_memory_replies", "Batches that ran out of device memory."),
}
_MODEL_HISTOGRAMS = {
    "batch_rows": ("batch_rows", "Rows of a dispatched batch."),
    "queue_wait": ("queue_wait_seconds", "Arrival to dispatch."),
    "backend_time": ("backend_request_seconds", "Dispatch to reply of a batch."),
    "request_time": ("request_seconds", "Arrival to answer of a completed request."),
}
_BACKEND_GAUGES = {
    "inflight_batches": ("backend_inflight_batches", "Batches out at the backend."),
    "inflight_rows": ("backend_inflight_rows", "Rows out at the backend."),
    "connections_open": ("backend_connections", "Data connections open to the backend."),
}
_BACKEND_COUNTERS = {
    "batches": ("backend_batches", "Batches sent to the backend."),
    "rows": ("backend_rows", "Rows sent to the backend."),
    "failed_batches": ("backend_failed_batches", "Batches that the backend failed."),
}
_PAGE_GAUGES = {
    "client_connections": ("client_connections", "Client connections open.", 1.0),
    "loading_waiting": (
        "model_loading_requests",
        "Requests that wait for their model to be loaded.",
        1.0,
    ),
    "host_bytes": ("host_bytes", "Request bytes held in host memory.", 1.0),
    "loop_lag_max_ns": ("loop_lag_seconds", "Longest lateness of the loop since start.", 1e-9),
}
_PAGE_COUNTERS = {
    "connections_total": ("client_connections_accepted", "Client connections accepted.", 1.0),
    "streams_reset_total": ("streams_reset", "Client streams reset.", 1.0),
    "forwarded_streams_total": ("forwarded_streams", "Calls passed to the control plane.", 1.0),
    "unknown_model_total": ("unknown_model_requests", "Requests for no known model.", 1.0),
    "undecodable_total": ("undecodable_requests", "Messages that are no ModelInferRequest.", 1.0),
    "loading_parked_total": (
        "model_loading_waits",
        "Requests that had to wait for their model to be loaded.",
        1.0,
    ),
    "loading_admitted_total": (
        "model_loading_admitted",
        "Of these, handed to admission when it was.",
        1.0,
    ),
    "loading_expired_total": ("model_loading_expired", "Of these, expired before.", 1.0),
    "loading_cancelled_total": ("model_loading_cancelled", "Of these, cancelled before.", 1.0),
    "loading_failed_total": (
        "model_loading_failed",
        "Of these, answered for a failed load, a drain, or too much behind them on their stream.",
        1.0,
    ),
    "loading_refused_total": (
        "model_loading_refused",
        "Requests for models that are not loaded, refused at once.",
        1.0,
    ),
    "loop_turns": ("loop_turns", "Turns of the data plane's loop.", 1.0),
    "loop_busy_ns": ("loop_busy_seconds", "Time the data plane's loop spent working.", 1e-9),
    "loop_gathering_ns": (
        "loop_gathering_seconds",
        "Time the data plane's loop let fast replies of decoupled models gather.",
        1e-9,
    ),
}


@dataclass(frozen=True)
class LearnedFigures:
    """How good the predictions of a model's latency on a backend are."""

    error_seconds: float  # mean of observed - expected of late
    margin: float  # by which deadlines are kept beyond the expected time
    beyond_margin: float  # part of the batches that took longer than that
    rows_target: int  # the batch size that the present load asks for


_LEARNED_GAUGES = {
    "error_seconds": ("prediction_error_seconds", "Mean of observed minus predicted batch time."),
    "margin": ("prediction_margin_ratio", "Time kept for a batch by its expected time."),
    "beyond_margin": ("prediction_beyond_margin_ratio", "Batches that took longer than kept."),
    "rows_target": ("batch_rows_target", "Batch size that the present load asks for."),
}

_CLOCK_JUMPS = {"clock_back_total": "back", "clock_ahead_total": "ahead"}

# Field of the data plane's snapshot, as last read -> (name without prefix, help).
SHARED_MEMORY_GAUGES = {
    "used_bytes": ("used_bytes", "Of the segment, in blocks that are held."),
    "backed_bytes": ("backed_bytes", "Of the segment, with pages of host memory."),
    "quarantined_calls": ("quarantined_calls", "Lost calls whose memory is not free yet."),
    "calls": ("calls", "Calls that went through shared memory since the data plane's start."),
}


@dataclass(frozen=True)
class Scope:
    """What a scrape reads: indices by label values, and the figures that are not on the page."""

    models: Mapping[tuple[str, str], int]
    backends: Mapping[str, int]
    backends_up: Mapping[str, bool]
    config_reload_failures: int
    ready: bool
    learned: Mapping[tuple[str, str, str], LearnedFigures] = field(default_factory=dict)
    shared_memory: Mapping[str, int] = field(default_factory=dict)
    # By model, version, backend and kind.
    ignored_times: Mapping[tuple[str, str, str, str], int] = field(default_factory=dict)
    devices: DeviceScope = field(default_factory=DeviceScope)
    residency: ResidencyScope = field(default_factory=ResidencyScope)


def ledger_imbalance(counters: Mapping[str, Any]) -> int:
    """admitted - (completed + expired + cancelled + failed + in flight): zero, always."""
    answered = sum(counters[key] for key in ("completed", "expired", "cancelled", "failed"))
    return int(counters["admitted"] - answered - counters["in_flight"])


class CountersCollector(Collector):
    """Turns the page into metric families. `scope` is asked at every scrape."""

    def __init__(self, page: CountersPage, scope: Callable[[], Scope]) -> None:
        self._page = page
        self._scope = scope

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the page."""
        return []

    def collect(self) -> Iterator[Metric]:
        scope = self._scope()
        info = GaugeMetricFamily(
            "infersched_build_info", "The version that runs.", labels=["version"]
        )
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily("infersched_ready", "1 when ServerReady is true.", scope.ready)
        yield CounterMetricFamily(
            "infersched_config_reload_failures",
            "Configurations that could not be taken over.",
            scope.config_reload_failures,
        )
        for key, value in scope.shared_memory.items():
            name, text = SHARED_MEMORY_GAUGES[key]
            yield GaugeMetricFamily(f"infersched_shared_memory_{name}", text, value)
        yield from self._page_families()
        models = {}
        for labels, index in scope.models.items():
            counters = self._counters_at_rest(index)
            if counters is not None:
                models[labels] = counters
        yield from _model_families(models)
        yield from _objective_families(models)
        yield from _learned_families(scope.learned)
        ignored = CounterMetricFamily(
            "infersched_ignored_batch_times",
            "Times of batches that cannot be, which nothing is learned from.",
            labels=[*MODEL, "backend", "kind"],
        )
        for place, count in scope.ignored_times.items():
            ignored.add_metric(place, count)
        yield ignored
        yield from self._backend_families(scope)
        yield from device_families(scope.devices)
        yield from residency_families(scope.residency)

    def _counters_at_rest(self, index: int) -> dict[str, Any] | None:
        """The page changes while it is read: a ledger that does not balance is read again."""
        counters = self._page.model(index)
        for _ in range(8):
            if counters is None or ledger_imbalance(counters) == 0:
                break
            counters = self._page.model(index)
        return counters

    def _page_families(self) -> Iterator[Metric]:
        page = self._page.page()
        for key, (name, text, scale) in _PAGE_GAUGES.items():
            yield GaugeMetricFamily(f"infersched_{name}", text, page[key] * scale)
        for key, (name, text, scale) in _PAGE_COUNTERS.items():
            yield CounterMetricFamily(f"infersched_{name}", text, page[key] * scale)
        jumps = CounterMetricFamily(
            "infersched_clock_jumps",
            "Times that the clock of the data plane went back, or far ahead of what was due.",
            labels=["direction"],
        )
        for key, direction in _CLOCK_JUMPS.items():
            jumps.add_metric([direction], page[key])
        yield jumps

    def _backend_families(self, scope: Scope) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "infersched_backend_up", "1 while the backend is in rotation.", labels=["backend"]
        )
        for address, is_up in scope.backends_up.items():
            up.add_metric([address], is_up)
        yield up
        found = {a: self._page.backend(index) for a, index in scope.backends.items()}
        known = {address: counters for address, counters in found.items() if counters}
        for key, (name, text) in _BACKEND_GAUGES.items():
            gauge = GaugeMetricFamily(f"infersched_{name}", text, labels=["backend"])
            for address, counters in known.items():
                gauge.add_metric([address], counters[key])
            yield gauge
        for key, (name, text) in _BACKEND_COUNTERS.items():
            counter = CounterMetricFamily(f"infersched_{name}", text, labels=["backend"])
            for address, counters in known.items():
                counter.add_metric([address], counters[key])
            yield counter


def _model_families(models: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "infersched_requests", "Requests by how and why they ended.", labels=[*MODEL, "outcome",
                                                                              "reason"]
    )  # fmt: skip
    age = GaugeMetricFamily(
        "infersched_queue_oldest_age_seconds", "Age of the oldest queued request.", labels=MODEL
    )
    fill = GaugeMetricFamily(
        "infersched_batch_fill_ratio", "Rows dispatched by rows the batches could hold.",
        labels=MODEL,
    )  # fmt: skip
    ledger = GaugeMetricFamily(
        "infersched_ledger_imbalance", "Admitted requests without an answer or a place; zero.",
        labels=MODEL,
    )  # fmt: skip
    decisions = CounterMetricFamily(
        "infersched_admission_decisions", "Requests by what admission decided on arrival, and why.",
        labels=[*MODEL, "decision", "reason"],
    )  # fmt: skip
    now_ns = time.monotonic_ns()
    for labels, counters in models.items():
        decisions.add_metric([*labels, "admitted", "none"], counters["admitted"])
        for (outcome, reason), count in counters["outcomes"].items():
            requests.add_metric([*labels, outcome, reason], count)
            if outcome == "refused":
                decisions.add_metric([*labels, outcome, reason], count)
        oldest_ns = counters["oldest_arrival_ns"]
        age.add_metric(labels, max(now_ns - oldest_ns, 0) / 1e9 if oldest_ns else 0.0)
        capacity = counters["batch_rows_capacity"]
        fill.add_metric(labels, counters["batch_rows"][1] / capacity if capacity else 0.0)
        ledger.add_metric(labels, ledger_imbalance(counters))
    yield from (requests, decisions, age, fill, ledger)
    for key, (name, text) in _MODEL_GAUGES.items():
        gauge = GaugeMetricFamily(f"infersched_{name}", text, labels=MODEL)
        for labels, counters in models.items():
            gauge.add_metric(labels, counters[key])
        yield gauge
    for key, (name, text) in _MODEL_COUNTERS.items():
        counter = CounterMetricFamily(f"infersched_{name}", text, labels=MODEL)
        for labels, counters in models.items():
            counter.add_metric(labels, counters[key])
        yield counter
    for key, (name, text) in _MODEL_HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"infersched_{name}", text, labels=MODEL)
        for labels, counters in models.items():
            add_histogram(histogram, labels, key, counters[key])
        yield histogram


def _objective_families(models: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[Metric]:
    labels = [*MODEL, "priority"]
    total = CounterMetricFamily(
        "infersched_slo",
        "Requests with an objective or a deadline that were answered, failed, expired, or were "
        "refused by admission; not those cancelled, nor refused before: invalid, for lack of host "
        "memory, or while the model is loaded.",
        labels=labels,
    )
    good = CounterMetricFamily("infersched_slo_good", "Of these, answered OK in time.",
                               labels=labels)  # fmt: skip
    for model, counters in models.items():
        for level, (answered, in_time) in (counters["levels"] or {1: (0, 0)}).items():
            total.add_metric([*model, str(level)], answered)
            good.add_metric([*model, str(level)], in_time)
    yield from (total, good)


def _learned_families(
    learned: Mapping[tuple[str, str, str], LearnedFigures],
) -> Iterator[Metric]:
    for key, (name, text) in _LEARNED_GAUGES.items():
        gauge = GaugeMetricFamily(f"infersched_{name}", text, labels=[*MODEL, "backend"])
        for labels, figures in learned.items():
            gauge.add_metric(labels, getattr(figures, key))
        yield gauge


def add_histogram(
    family: HistogramMetricFamily,
    labels: tuple[str, str],
    key: str,
    buckets_and_sum: tuple[list[int], int],
) -> None:
    """Adds up the page's bucket counts; sums of durations become seconds."""
    counts, total = buckets_and_sum
    is_rows = key == "batch_rows"
    buckets, running = [], 0
    for bound, count in zip(ROW_BOUND_TEXTS if is_rows else DURATION_BOUNDS, counts, strict=True):
        running += count
        buckets.append((bound, running))
    family.add_metric(labels, buckets, total if is_rows else total / 1e9)
