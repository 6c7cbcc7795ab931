"""The layout of csrc/engine/counters.h once more, in ctypes, so that tests can write a page."""

from __future__ import annotations

import ctypes
import mmap
import os

OUTCOMES, REASONS, DURATION_BUCKETS, ROW_BUCKETS = 5, 20, 20, 16


def _words(names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_uint64) for name in names.split()]


class Durations(ctypes.Structure):
    _fields_ = [("counts", ctypes.c_uint64 * DURATION_BUCKETS), ("sum_ns", ctypes.c_uint64)]


class Rows(ctypes.Structure):
    _fields_ = [("counts", ctypes.c_uint64 * ROW_BUCKETS), ("sum_rows", ctypes.c_uint64)]


class Level(ctypes.Structure):
    _fields_ = _words("slo_total slo_good")


class Model(ctypes.Structure):
    _fields_ = [
        *_words("in_use admitted completed expired cancelled failed in_flight refused"),
        ("outcomes", ctypes.c_uint64 * REASONS * OUTCOMES),
        *_words("queued_requests queued_rows queued_bytes oldest_arrival_ns inflight_batches"),
        *_words("batches batch_rows_capacity retried_batches bisected_batches"),
        *_words("memory_limited_batches out_of_memory_replies slo_total slo_good"),
        ("levels", Level * 32),
        ("batch_rows", Rows),
        ("queue_wait", Durations),
        ("backend_time", Durations),
        ("request_time", Durations),
    ]


class Backend(ctypes.Structure):
    _fields_ = _words(
        "in_use batches rows failed_batches inflight_batches inflight_rows connections_open"
    )


class Device(ctypes.Structure):
    _fields_ = _words("seen known free_bytes total_bytes headroom_bytes reserved_bytes")


class Page(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("version", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        *_words("page_bytes generation loop_turns loop_lag_max_ns loop_busy_ns"),
        *_words("client_connections connections_total streams_reset_total"),
        *_words("forwarded_streams_total host_bytes unknown_model_total undecodable_total"),
        *_words("loading_waiting loading_parked_total loading_admitted_total"),
        *_words("loading_expired_total loading_cancelled_total loading_failed_total"),
        *_words("loading_refused_total loop_gathering_ns clock_back_total clock_ahead_total"),
        ("reserved", ctypes.c_uint64 * 5),
        ("devices", Device * 64),
        ("backends", Backend * 256),
        ("models", Model * 16_384),
    ]


class WrittenPage:
    """A page in a memfd: `page` is written by the test, `fd` goes to the reader."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("counters-twin")
        os.ftruncate(self.fd, ctypes.sizeof(Page))
        self._map = mmap.mmap(self.fd, ctypes.sizeof(Page))
        self.page = Page.from_buffer(self._map)

    def close(self) -> None:
        del self.page
        self._map.close()
        os.close(self.fd)
