"""Metrics: the page's numbers under their Prometheus names, read back by Prometheus' own parser."""

from __future__ import annotations

import ctypes
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from scheduler._native import counters as native
from scheduler.telemetry.listener import HttpListener
from scheduler.telemetry.metrics import CountersCollector, LearnedFigures, Scope
from tests.unit.counters_twin import DURATION_BUCKETS, ROW_BUCKETS, Page, WrittenPage

LABELS = {"model": "m", "version": "3"}
Sample = Callable[..., float | None]


@pytest.fixture
def written() -> Iterator[WrittenPage]:
    page = WrittenPage()
    yield page
    page.close()


@pytest.fixture
def registry(written: WrittenPage) -> CollectorRegistry:
    learned = {("m", "3", "t:1"): LearnedFigures(-0.0005, 1.25, 0.008, 12)}
    scope = Scope({("m", "3"): 5}, {"t:1": 2}, {"t:1": True, "u:1": False}, 4, True, learned,
                  {"used_bytes": 4096, "quarantined_calls": 2},
                  {("m", "3", "t:1", "backward"): 7})  # fmt: skip
    registry = CollectorRegistry(auto_describe=False)
    registry.register(CountersCollector(native.CountersPage(written.fd), lambda: scope))
    return registry


@pytest.fixture
def sample(registry: CollectorRegistry) -> Sample:
    """The value of one series after a scrape that went through the text format."""

    def read(name: str, **labels: str) -> float | None:
        text = generate_latest(registry).decode()
        for family in text_string_to_metric_families(text):
            for found in family.samples:
                if found.name == name and found.labels == labels:
                    return found.value
        return None

    return read


def outcome(name: str, reason: str) -> tuple[int, int]:
    return native.OUTCOMES.index(name), native.REASONS.index(reason)


def test_the_binding_has_the_layout_of_the_header() -> None:
    assert ctypes.sizeof(Page) == native.PAGE_BYTES


def test_a_page_that_is_too_small_is_refused() -> None:
    fd = os.memfd_create("small")
    try:
        with pytest.raises(OSError, match="are needed"):
            native.CountersPage(fd)
    finally:
        os.close(fd)


def test_a_model_that_is_not_in_use_has_no_series(sample: Sample) -> None:
    assert sample("infersched_queue_depth", **LABELS) is None


def test_requests_by_outcome_and_reason(written: WrittenPage, sample: Sample) -> None:
    model = written.page.models[5]
    model.in_use = 1
    for (name, reason), count in {("completed", "none"): 7, ("refused", "queue_full"): 2}.items():
        o, r = outcome(name, reason)
        model.outcomes[o][r] = count
    name = "infersched_requests_total"
    assert sample(name, **LABELS, outcome="completed", reason="none") == 7
    assert sample(name, **LABELS, outcome="refused", reason="queue_full") == 2
    assert sample(name, **LABELS, outcome="failed", reason="backend_error") is None


def test_admission_decisions_count_arrivals_not_endings(
    written: WrittenPage, sample: Sample
) -> None:
    model = written.page.models[5]
    model.in_use, model.admitted, model.in_flight, model.completed = 1, 9, 2, 7
    for (name, reason), count in {("completed", "none"): 7, ("refused", "queue_full"): 2}.items():
        o, r = outcome(name, reason)
        model.outcomes[o][r] = count
    name = "infersched_admission_decisions_total"
    assert sample(name, **LABELS, decision="admitted", reason="none") == 9
    assert sample(name, **LABELS, decision="refused", reason="queue_full") == 2
    assert sample(name, **LABELS, decision="completed", reason="none") is None


def test_the_ledger_is_zero_in_balance_and_shows_what_is_missing(
    written: WrittenPage, sample: Sample
) -> None:
    model = written.page.models[5]
    model.in_use, model.admitted, model.completed, model.in_flight = 1, 10, 6, 2
    model.expired = model.cancelled = 1
    assert sample("infersched_ledger_imbalance", **LABELS) == 0
    model.completed = 5
    assert sample("infersched_ledger_imbalance", **LABELS) == 1


def test_duration_histograms_are_cumulative_and_in_seconds(
    written: WrittenPage, sample: Sample
) -> None:
    model = written.page.models[5]
    model.in_use = 1
    model.queue_wait.counts[0] = 3
    model.queue_wait.counts[1] = 2
    model.queue_wait.counts[DURATION_BUCKETS - 1] = 1
    model.queue_wait.sum_ns = 2_500_000_000
    name = "infersched_queue_wait_seconds"
    assert sample(f"{name}_bucket", **LABELS, le="5e-05") == 3
    assert sample(f"{name}_bucket", **LABELS, le="0.0001") == 5
    assert sample(f"{name}_bucket", **LABELS, le="+Inf") == 6
    assert sample(f"{name}_count", **LABELS) == 6
    assert sample(f"{name}_sum", **LABELS) == 2.5


def test_row_histograms_and_the_fill_ratio(written: WrittenPage, sample: Sample) -> None:
    model = written.page.models[5]
    model.in_use, model.batch_rows_capacity = 1, 128
    model.batch_rows.counts[3] = 2
    model.batch_rows.counts[ROW_BUCKETS - 1] = 1
    model.batch_rows.sum_rows = 32
    assert sample("infersched_batch_rows_bucket", **LABELS, le="4") == 0
    assert sample("infersched_batch_rows_bucket", **LABELS, le="8") == 2
    assert sample("infersched_batch_rows_bucket", **LABELS, le="+Inf") == 3
    assert sample("infersched_batch_fill_ratio", **LABELS) == 0.25


def test_the_age_of_the_oldest_request(written: WrittenPage, sample: Sample) -> None:
    model = written.page.models[5]
    model.in_use = 1
    assert sample("infersched_queue_oldest_age_seconds", **LABELS) == 0
    arrival_ns = model.oldest_arrival_ns = time.monotonic_ns() - 2_000_000_000
    age_s = sample("infersched_queue_oldest_age_seconds", **LABELS) or 0
    assert 2.0 <= age_s <= (time.monotonic_ns() - arrival_ns) / 1e9


def test_backends_and_the_process(written: WrittenPage, sample: Sample) -> None:
    backend = written.page.backends[2]
    backend.in_use, backend.rows, backend.connections_open = 1, 9, 2
    written.page.loop_lag_max_ns = 3_000_000
    assert sample("infersched_backend_rows_total", backend="t:1") == 9
    assert sample("infersched_backend_connections", backend="t:1") == 2
    assert sample("infersched_backend_up", backend="t:1") == 1
    assert sample("infersched_backend_up", backend="u:1") == 0
    assert sample("infersched_loop_lag_seconds") == pytest.approx(0.003)
    assert sample("infersched_config_reload_failures_total") == 4


def test_objectives_are_counted_by_priority(written: WrittenPage, sample: Sample) -> None:
    model = written.page.models[5]
    model.in_use = 1
    assert sample("infersched_slo_total", **LABELS, priority="1") == 0
    model.levels[0].slo_total, model.levels[0].slo_good = 9, 8
    model.levels[31].slo_total = 2
    assert sample("infersched_slo_total", **LABELS, priority="1") == 9
    assert sample("infersched_slo_good_total", **LABELS, priority="1") == 8
    assert sample("infersched_slo_good_total", **LABELS, priority="32") == 0
    assert sample("infersched_slo_total", **LABELS, priority="2") is None


def test_shared_memory_is_shown_as_it_was_read(sample: Sample) -> None:
    assert sample("infersched_shared_memory_used_bytes") == 4096
    assert sample("infersched_shared_memory_quarantined_calls") == 2


def test_what_was_learned_is_shown_by_backend(sample: Sample) -> None:
    labels = {**LABELS, "backend": "t:1"}
    assert sample("infersched_prediction_error_seconds", **labels) == -0.0005
    assert sample("infersched_prediction_margin_ratio", **labels) == 1.25
    assert sample("infersched_prediction_beyond_margin_ratio", **labels) == 0.008
    assert sample("infersched_batch_rows_target", **labels) == 12


def test_times_that_cannot_be_are_counted_by_kind(written: WrittenPage, sample: Sample) -> None:
    labels = {**LABELS, "backend": "t:1"}
    name = "infersched_ignored_batch_times_total"
    assert sample(name, **labels, kind="backward") == 7
    assert sample(name, **labels, kind="zero") is None
    written.page.clock_back_total, written.page.clock_ahead_total = 2, 3
    assert sample("infersched_clock_jumps_total", direction="back") == 2
    assert sample("infersched_clock_jumps_total", direction="ahead") == 3


def test_every_family_of_the_operators_page_is_there(
    written: WrittenPage, registry: CollectorRegistry
) -> None:
    written.page.models[5].in_use = 1
    families = text_string_to_metric_families(generate_latest(registry).decode())
    names = {family.name for family in families}
    wanted = """requests admission_decisions queue_depth queue_bytes queue_oldest_age_seconds
        queue_wait_seconds batch_rows batch_fill_ratio backend_request_seconds request_seconds
        slo_good slo prediction_error_seconds batch_rows_target inflight_batches retries
        config_reload_failures loop_lag_seconds ignored_batch_times clock_jumps
        ledger_imbalance client_connections backend_up build_info"""
    assert {f"infersched_{name}" for name in wanted.split()} <= names


def test_the_listener_serves_metrics_and_health(registry: CollectorRegistry) -> None:
    ready = [False]
    listener = HttpListener(socket.create_server(("127.0.0.1", 0)), registry, lambda: ready[0])
    listener.start()
    try:
        host, port = listener.address
        base = f"http://{host}:{port}"
        with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:
            assert b"infersched_build_info" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{base}/healthz", timeout=30)
        ready[0] = True
        with urllib.request.urlopen(f"{base}/healthz", timeout=30) as answer:
            assert answer.read() == b"ready\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/", timeout=30)
    finally:
        listener.stop()
