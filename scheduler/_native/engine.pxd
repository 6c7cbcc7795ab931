"""Declarations of csrc/engine."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.vector cimport vector


cdef extern from "base/status.h" namespace "infersched" nogil:
    cdef enum class StatusCode(uint8_t):
        pass


cdef extern from "engine/counters.h" namespace "infersched::engine" nogil:
    cdef enum class Outcome(uint8_t):
        pass

    cdef enum class Reason(uint8_t):
        pass

    cdef struct DurationHistogram:
        uint64_t counts[20]
        uint64_t sum_ns

    cdef struct RowHistogram:
        uint64_t counts[16]
        uint64_t sum_rows

    cdef struct LevelCounters:
        uint64_t slo_total, slo_good

    cdef struct ModelCounters:
        uint64_t admitted, completed, expired, cancelled, failed, in_flight, refused
        uint64_t outcomes[5][20]
        uint64_t queued_requests, queued_rows, queued_bytes, oldest_arrival_ns
        uint64_t inflight_batches, batches, batch_rows_capacity, retried_batches, bisected_batches
        uint64_t memory_limited_batches, out_of_memory_replies
        uint64_t slo_total, slo_good
        LevelCounters levels[32]
        RowHistogram batch_rows
        DurationHistogram queue_wait, backend_time, request_time

    cdef struct BackendCounters:
        uint64_t batches, rows, failed_batches, inflight_batches, inflight_rows

    cdef struct CountersPage:
        uint64_t clock_back_total, clock_ahead_total
        BackendCounters backends[256]
        ModelCounters models[16384]


cdef extern from "engine/engine.h" namespace "infersched::engine" nogil:
    cdef cppclass TritonQueuePolicy:
        cbool delay_timed_out, timeout_override
        int64_t timeout_ns
        uint32_t requests_max

    cdef cppclass TritonBatching:
        cbool dynamic, preserve_ordering
        vector[uint32_t] preferred_rows
        int64_t queue_delay_max_ns
        vector[TritonQueuePolicy] levels
        uint32_t default_level

    cdef cppclass LevelPolicy:
        int64_t slo_ns
        cbool best_effort
        double attainment

    cdef cppclass ModelPolicy:
        shared_ptr[TritonBatching] triton
        cbool in_use, merge, idempotent, cancellable, admitting, load_aware
        vector[LevelPolicy] levels
        double attainment, value
        uint32_t rows_max, priority_levels, default_priority, staged_batches_max
        uint32_t direct_max, hold_requests
        vector[uint32_t] preferred_rows, mandatory_rows
        int64_t queue_delay_max_ns, slo_ns, queue_age_max_ns, sequence_idle_ns, aging_ns
        uint64_t queue_requests_max, queue_bytes_max

    cdef cppclass Placement:
        uint32_t backend, instances, executor_group
        cbool ready
        vector[uint32_t] devices
        uint32_t device_instances

    cdef cppclass Request:
        uint64_t user, signature, bytes, row_bytes, priority, labels
        uint32_t model, rows, pinned_backend, target, snapshot
        int64_t arrival, deadline
        cbool mergeable, sequence_start, sequence_end
        uint64_t sequence, path
        int64_t timeout_ns
        uint32_t tenant

    cdef struct Admission:
        uint64_t handle
        Reason reason
        int64_t retry_after_ns, predicted_ns, budget_ns
        uint64_t predicted_bytes, free_bytes
        StatusCode code

    cdef struct BatchMember:
        uint64_t request, user
        uint32_t row_begin, rows

    cdef enum class ActionKind(uint8_t):
        kDispatch
        kAnswer
        kAbandon
        kWake

    cdef struct Action:
        ActionKind kind
        Outcome outcome
        Reason reason
        StatusCode code
        uint32_t model, backend, member_begin, member_count, rows, rows_padded
        uint64_t request, user, batch
        int64_t at, queued_ns, retry_after_ns
        uint64_t predicted_bytes, free_bytes

    cdef enum class FailureKind(uint8_t):
        pass

    cdef struct BatchSizeStats:
        uint32_t rows
        uint64_t batches, backend_ns

    cdef cppclass ModelStats:
        uint64_t rows, batches, completed, completed_ns, failed, failed_ns, rejected, rejected_ns
        uint64_t cancelled, cancelled_ns, queue_ns, backend_ns
        int64_t last_answer
        vector[BatchSizeStats] batch_sizes

    cdef struct QueueStatus:
        uint64_t requests, rows, bytes
        int64_t oldest_arrival
        uint32_t inflight_batches
        cbool merging

    cdef struct CppIgnoredTimes "infersched::engine::IgnoredTimes":
        uint64_t backward, zero, too_long, prior

    cdef cppclass LatencyStatus:
        cbool known
        uint64_t observations
        int64_t alpha_ns, beta_ns
        double margin, error_mean, beyond_margin, rate_per_s
        uint32_t rows_target
        CppIgnoredTimes ignored
        vector[BatchSizeStats] sizes

    cdef cppclass DeviceMemory:
        cbool known, fixed
        uint64_t free_bytes, total_bytes, headroom_bytes
        int64_t measured_at
        uint64_t own_bytes
        int64_t own_measured_at
        uint64_t loads

    cdef cppclass MemoryStatus:
        cbool known
        double base_bytes, bytes_per_row, error
        uint64_t samples, added_bytes, out_of_memory
        uint32_t rows_high, rows_limit, rows_cap

    cdef cppclass DeviceStatus:
        cbool seen
        DeviceMemory memory
        uint64_t reserved_bytes

    cdef cppclass CppEngine "infersched::engine::Engine":
        CppEngine(CountersPage* page) except +
        void configure_model(
            uint32_t, const ModelPolicy&, const vector[Placement]&, int64_t
        ) except +
        void set_backend(uint32_t, cbool, int64_t) except +
        void set_tenants(const vector[double]&) except +
        void set_draining(cbool)
        cbool prime_latency(uint32_t, uint32_t, uint32_t, int64_t, uint64_t) except +
        LatencyStatus latency_status(uint32_t, uint32_t) except +
        void set_device(uint32_t, const DeviceMemory&, int64_t) except +
        cbool prime_memory(uint32_t, uint32_t, double, double, uint32_t, cbool) except +
        MemoryStatus memory_status(uint32_t, uint32_t) except +
        DeviceStatus device_status(uint32_t) except +
        Admission submit(const Request&, int64_t) except +
        void cancel(uint64_t, int64_t) except +
        void fail_all(Reason, int64_t) except +
        void complete(uint64_t, int64_t) except +
        void dispatch_failed(uint64_t, FailureKind, StatusCode, int64_t) except +
        void end_path(uint64_t, int64_t) except +
        void step(int64_t) except +
        const vector[Action]& actions()
        const vector[BatchMember]& members()
        cbool needs_step()
        void clear_actions()
        QueueStatus queue_status(uint32_t)
        ModelStats model_stats(uint32_t) except +
        uint64_t requests_inflight()
        void check_invariants()
        vector[uint8_t] save() except +
        cbool load(const vector[uint8_t]&) except +


cdef class Engine:
    cdef CppEngine* _engine
    cdef CountersPage* _page
