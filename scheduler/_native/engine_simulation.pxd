"""Declarations of csrc/simulation's run of the engine."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from scheduler._native.simulation cimport CScenario, Metrics


cdef extern from "base/status.h" namespace "infersched" nogil:
    cdef enum class StatusCode(uint8_t):
        pass


cdef extern from "engine/engine.h" namespace "infersched::engine" nogil:
    cdef enum class FailureKind(uint8_t):
        pass

    cdef cppclass LevelPolicy:
        int64_t slo_ns
        cbool best_effort
        double attainment

    cdef cppclass ModelPolicy:
        cbool in_use, merge, idempotent, cancellable, load_aware
        uint32_t rows_max, priority_levels, default_priority, staged_batches_max
        vector[uint32_t] preferred_rows, mandatory_rows
        vector[LevelPolicy] levels
        int64_t queue_delay_max_ns, slo_ns, queue_age_max_ns, aging_ns
        uint64_t queue_requests_max, queue_bytes_max
        double attainment, value

    cdef cppclass Placement:
        uint32_t backend, instances, executor_group
        cbool ready
        vector[uint32_t] devices

    cdef cppclass MemoryStatus:
        cbool known
        double base_bytes, bytes_per_row, error
        uint64_t samples, out_of_memory
        uint32_t rows_high


cdef extern from "simulation/engine_settings.h" namespace "infersched::simulation" nogil:
    cdef cppclass RequestClass:
        double share
        uint64_t priority
        int64_t objective_ns
        uint32_t tenant, rows, signatures
        uint64_t row_bytes

    cdef cppclass ModelSetup:
        ModelPolicy policy
        vector[Placement] placements
        vector[RequestClass] classes
        uint64_t base_bytes, bytes_per_row

    cdef cppclass TenantUse:
        int64_t from_ns
        uint64_t bytes

    cdef cppclass DeviceSetup:
        uint64_t total_bytes, headroom_bytes
        int64_t poll_ns
        vector[TenantUse] tenant

    cdef enum class FaultKind(uint8_t):
        pass

    cdef cppclass Fault:
        FaultKind kind
        int64_t from_ns, until_ns, shift_ns
        uint32_t backend, model
        double factor
        FailureKind failure
        StatusCode code

    cdef cppclass EngineSettings:
        uint32_t rows_max
        vector[ModelSetup] models
        vector[double] tenants, speeds
        double drift_per_s
        int64_t wire_ns
        vector[Fault] faults
        vector[DeviceSetup] devices
        cbool check_truths, keep_fates
        uint64_t forced_ordinal
        uint64_t kept_ordinal
        int64_t stop_ns


cdef extern from "simulation/decision_load.h" namespace "infersched::simulation" nogil:
    cdef cppclass DecisionSettings:
        uint32_t models, rows_max
        uint64_t queue_length, seed
        cbool load_aware

    cdef cppclass CDecisionLoad "infersched::simulation::DecisionLoad":
        CDecisionLoad(const DecisionSettings& settings) except +
        void fill() except +
        cbool run(uint64_t requests) except +
        uint64_t completed()


cdef extern from "simulation/histogram.h" namespace "infersched::simulation" nogil:
    cdef cppclass Histogram:
        int64_t quantile(double part)


cdef extern from "simulation/engine_run.h" namespace "infersched::simulation" nogil:
    cdef cppclass ClassMetrics:
        uint64_t offered, in_time, late, refused, expired, failed, cancelled, unanswered

    cdef enum class Fate(uint8_t):
        pass

    cdef cppclass EngineMetrics:
        Metrics totals
        vector[vector[ClassMetrics]] classes
        Histogram waits, latencies
        vector[Fate] fates
        vector[int64_t] arrivals_ns
        uint64_t faults_begun, steps, failed_batches, cancels
        uint64_t memory_failures, memory_failures_fitting
        vector[MemoryStatus] memory
        string broken

    EngineMetrics simulate_engine(
        const CScenario& scenario, const EngineSettings& settings) except +
    string engine_problem_of "infersched::simulation::problem_of"(
        const CScenario& scenario, const EngineSettings& settings) except +
