"""Read-only view of the counters page that the data plane writes (csrc/engine/counters.h)."""

from libc.errno cimport errno
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap

import os

PAGE_BYTES = sizeof(CCountersPage)
MODELS_MAX = kCountersModelsMax
BACKENDS_MAX = kCountersBackendsMax
DEVICES_MAX = kDevicesMax

include "reasons.pxi"

# Upper bounds of all buckets but the last, which has none.
DURATION_BOUNDS_NS = tuple(kFirstDurationBoundNs << i for i in range(kDurationBuckets - 1))
ROW_BOUNDS = tuple(1 << i for i in range(kRowBuckets - 1))

if len(OUTCOMES) != kOutcomes or len(REASONS) != kReasons:
    raise ImportError("counters.pyx does not name every Outcome and Reason of counters.h")


cdef tuple _durations(const DurationHistogram *histogram):
    return [histogram.counts[i] for i in range(kDurationBuckets)], histogram.sum_ns


cdef tuple _rows(const RowHistogram *histogram):
    return [histogram.counts[i] for i in range(kRowBuckets)], histogram.sum_rows


cdef dict _levels(const ModelCounters *model):
    return {
        i + 1: (model.levels[i].slo_total, model.levels[i].slo_good)
        for i in range(kCountersLevelsMax) if model.levels[i].slo_total
    }


cdef class CountersPage:
    """Maps the page of `fd` for reading. Raises OSError when it is too small or not mappable."""

    cdef const CCountersPage *_page

    def __cinit__(self, int fd):
        self._page = NULL
        size = os.fstat(fd).st_size
        if size < PAGE_BYTES:
            raise OSError(f"the counters page has {size} bytes, {PAGE_BYTES} are needed")
        cdef void *address = mmap(NULL, sizeof(CCountersPage), PROT_READ, MAP_SHARED, fd, 0)
        if address == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self._page = <const CCountersPage *>address

    def __dealloc__(self):
        if self._page != NULL:
            munmap(<void *>self._page, sizeof(CCountersPage))

    @property
    def valid(self):
        """Whether a data plane of this layout has written the page's head."""
        return self._page.magic == kCountersMagic and self._page.version == kCountersVersion

    def page(self):
        """The counters of the process as a whole, by their names in counters.h."""
        cdef const CCountersPage *page = self._page
        return {
            "pid": page.pid,
            "generation": page.generation,
            "loop_turns": page.loop_turns,
            "loop_lag_max_ns": page.loop_lag_max_ns,
            "loop_busy_ns": page.loop_busy_ns,
            "client_connections": page.client_connections,
            "connections_total": page.connections_total,
            "streams_reset_total": page.streams_reset_total,
            "forwarded_streams_total": page.forwarded_streams_total,
            "host_bytes": page.host_bytes,
            "unknown_model_total": page.unknown_model_total,
            "undecodable_total": page.undecodable_total,
            "loading_waiting": page.loading_waiting,
            "loading_parked_total": page.loading_parked_total,
            "loading_admitted_total": page.loading_admitted_total,
            "loading_expired_total": page.loading_expired_total,
            "loading_cancelled_total": page.loading_cancelled_total,
            "loading_failed_total": page.loading_failed_total,
            "loading_refused_total": page.loading_refused_total,
            "loop_gathering_ns": page.loop_gathering_ns,
            "clock_back_total": page.clock_back_total,
            "clock_ahead_total": page.clock_ahead_total,
        }

    def backend(self, size_t index):
        """The counters of one backend, None while it is not in use. Raises IndexError."""
        if index >= kCountersBackendsMax:
            raise IndexError(index)
        cdef const BackendCounters *backend = &self._page.backends[index]
        if not backend.in_use:
            return None
        return {
            "batches": backend.batches,
            "rows": backend.rows,
            "failed_batches": backend.failed_batches,
            "inflight_batches": backend.inflight_batches,
            "inflight_rows": backend.inflight_rows,
            "connections_open": backend.connections_open,
        }

    def device(self, size_t index):
        """The counters of one device, None before its first reading. Raises IndexError."""
        if index >= kDevicesMax:
            raise IndexError(index)
        cdef const DeviceCounters *device = &self._page.devices[index]
        if not device.seen:
            return None
        return {
            "known": device.known,
            "free_bytes": device.free_bytes,
            "total_bytes": device.total_bytes,
            "headroom_bytes": device.headroom_bytes,
            "reserved_bytes": device.reserved_bytes,
        }

    def batches_returned(self, size_t index):
        """Batches of one model version that have come back, 0 while it is not in use."""
        if index >= kCountersModelsMax:
            raise IndexError(index)
        cdef const ModelCounters *model = &self._page.models[index]
        return model.batches - model.inflight_batches if model.in_use else 0

    def model(self, size_t index):
        """The counters of one model version, None while it is not in use. Raises IndexError.

        Histograms are (bucket counts, sum); `levels` maps the priority levels that had requests
        with an objective to their (slo_total, slo_good); `outcomes` maps (outcome, reason) to a
        count > 0.
        """
        if index >= kCountersModelsMax:
            raise IndexError(index)
        cdef const ModelCounters *model = &self._page.models[index]
        if not model.in_use:
            return None
        cdef size_t o, r
        cdef uint64_t count
        outcomes = {}
        for o in range(kOutcomes):
            for r in range(kReasons):
                count = model.outcomes[o][r]
                if count:
                    outcomes[OUTCOMES[o], REASONS[r]] = count
        return {
            "admitted": model.admitted,
            "completed": model.completed,
            "expired": model.expired,
            "cancelled": model.cancelled,
            "failed": model.failed,
            "in_flight": model.in_flight,
            "refused": model.refused,
            "outcomes": outcomes,
            "queued_requests": model.queued_requests,
            "queued_rows": model.queued_rows,
            "queued_bytes": model.queued_bytes,
            "oldest_arrival_ns": model.oldest_arrival_ns,
            "inflight_batches": model.inflight_batches,
            "batches": model.batches,
            "batch_rows_capacity": model.batch_rows_capacity,
            "retried_batches": model.retried_batches,
            "bisected_batches": model.bisected_batches,
            "memory_limited_batches": model.memory_limited_batches,
            "out_of_memory_replies": model.out_of_memory_replies,
            "slo_total": model.slo_total,
            "slo_good": model.slo_good,
            "levels": _levels(model),
            "batch_rows": _rows(&model.batch_rows),
            "queue_wait": _durations(&model.queue_wait),
            "backend_time": _durations(&model.backend_time),
            "request_time": _durations(&model.request_time),
        }
