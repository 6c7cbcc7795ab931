"""Metrics of device memory, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from scheduler.telemetry.device_metrics import (
    DeviceFigures,
    DeviceScope,
    NeedFigures,
    device_families,
)


def samples(scope: DeviceScope) -> dict[str, float]:
    class Scraped(Collector):
        def collect(self):  # type: ignore[no-untyped-def]
            return device_families(scope)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Scraped())
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('infersched_')}[{labels}]"] = sample.value
    return found


def test_devices_sources_and_needs() -> None:
    figures = DeviceFigures(True, 100, 60, 40, 5, 7, 0.25, True, {"xid 79": 2})
    found = samples(
        DeviceScope(
            devices={"GPU-a": figures},
            source_errors={"nvml": 3, "metrics of a:1": 0},
            source_failing={"nvml": True, "metrics of a:1": False},
            needs={("m", "1", "GPU-a"): NeedFigures(640, 64.0, 0.02, 10)},
            nvml_calls=17,
        )
    )
    device = {k.removesuffix("[device=GPU-a]"): v for k, v in found.items() if "[device=" in k}
    assert device == {
        "device_memory_known": 1,
        "device_memory_total_bytes": 100,
        "device_memory_free_bytes": 60,
        "device_memory_used_bytes": 40,
        "device_memory_headroom_bytes": 5,
        "device_memory_reserved_bytes": 7,
        "device_memory_age_seconds": 0.25,
        "device_slowed_by_heat": 1,
        "device_events_total[device=GPU-a,event=xid 79]": 2,
        "device_memory_predicted_bytes[device=GPU-a,model=m,version=1]": 640,
        "device_memory_row_bytes[device=GPU-a,model=m,version=1]": 64,
        "device_memory_prediction_error_ratio[device=GPU-a,model=m,version=1]": 0.02,
        "device_memory_rows_limit[device=GPU-a,model=m,version=1]": 10,
    }
    assert found["device_memory_source_errors_total[source=nvml]"] == 3
    assert found["device_memory_source_up[source=nvml]"] == 0
    assert found["device_memory_source_up[source=metrics of a:1]"] == 1
    assert found["nvml_calls_total[]"] == 17


def test_a_host_without_devices() -> None:
    assert samples(DeviceScope()) == {"nvml_calls_total[]": 0}
