# The layout of the counters page, as csrc/engine/counters.h declares it.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "engine/counters.h" namespace "infersched::engine" nogil:
    const uint64_t kCountersMagic
    const uint32_t kCountersVersion
    const size_t kCountersModelsMax
    const size_t kCountersBackendsMax
    const size_t kCountersLevelsMax
    const uint32_t kDevicesMax
    const size_t kDurationBuckets
    const int64_t kFirstDurationBoundNs
    const size_t kRowBuckets

    cdef size_t kOutcomes "static_cast<size_t>(infersched::engine::Outcome::kCount)"
    cdef size_t kReasons "static_cast<size_t>(infersched::engine::Reason::kCount)"

    cdef struct DurationHistogram:
        uint64_t *counts
        uint64_t sum_ns

    cdef struct RowHistogram:
        uint64_t *counts
        uint64_t sum_rows

    cdef struct LevelCounters:
        uint64_t slo_total
        uint64_t slo_good

    cdef struct ModelCounters:
        uint64_t in_use
        uint64_t admitted
        uint64_t completed
        uint64_t expired
        uint64_t cancelled
        uint64_t failed
        uint64_t in_flight
        uint64_t refused
        uint64_t[5][20] outcomes
        uint64_t queued_requests
        uint64_t queued_rows
        uint64_t queued_bytes
        uint64_t oldest_arrival_ns
        uint64_t inflight_batches
        uint64_t batches
        uint64_t batch_rows_capacity
        uint64_t retried_batches
        uint64_t bisected_batches
        uint64_t memory_limited_batches
        uint64_t out_of_memory_replies
        uint64_t slo_total
        uint64_t slo_good
        LevelCounters *levels
        RowHistogram batch_rows
        DurationHistogram queue_wait
        DurationHistogram backend_time
        DurationHistogram request_time

    cdef struct BackendCounters:
        uint64_t in_use
        uint64_t batches
        uint64_t rows
        uint64_t failed_batches
        uint64_t inflight_batches
        uint64_t inflight_rows
        uint64_t connections_open

    cdef struct DeviceCounters:
        uint64_t seen
        uint64_t known
        uint64_t free_bytes
        uint64_t total_bytes
        uint64_t headroom_bytes
        uint64_t reserved_bytes

    cdef struct CCountersPage "infersched::engine::CountersPage":
        uint64_t magic
        uint32_t version
        uint32_t pid
        uint64_t page_bytes
        uint64_t generation
        uint64_t loop_turns
        uint64_t loop_lag_max_ns
        uint64_t loop_busy_ns
        uint64_t client_connections
        uint64_t connections_total
        uint64_t streams_reset_total
        uint64_t forwarded_streams_total
        uint64_t host_bytes
        uint64_t unknown_model_total
        uint64_t undecodable_total
        uint64_t loading_waiting
        uint64_t loading_parked_total
        uint64_t loading_admitted_total
        uint64_t loading_expired_total
        uint64_t loading_cancelled_total
        uint64_t loading_failed_total
        uint64_t loading_refused_total
        uint64_t loop_gathering_ns
        uint64_t clock_back_total
        uint64_t clock_ahead_total
        DeviceCounters *devices
        BackendCounters *backends
        ModelCounters *models
