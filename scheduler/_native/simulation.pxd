"""C++ declarations of csrc/simulation that the binding uses."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

ctypedef int64_t Nanos


cdef extern from "simulation/latency.h" namespace "infersched::simulation" nogil:
    cdef cppclass Latency:
        Latency()
        void bound_rows(size_t rows_max)

    Latency affine "infersched::simulation::Latency::affine"(
        double alpha_ns, double beta_ns) except +
    Latency table "infersched::simulation::Latency::table"(
        const vector[Nanos]& measured) except +


cdef extern from "simulation/arrivals.h" namespace "infersched::simulation" nogil:
    cdef enum class ArrivalKind(uint8_t):
        kPoisson
        kGamma
        kOnOff
        kSeries
        kRecorded

    cdef cppclass ArrivalPlan:
        ArrivalPlan()
        ArrivalKind kind
        double rate_per_s
        double shape
        Nanos on_mean_ns
        Nanos off_mean_ns
        vector[double] rates_per_s
        Nanos step_ns
        vector[Nanos] times_ns

    cdef cppclass Arrivals:
        Arrivals(ArrivalPlan plan, uint64_t seed) except +
        Nanos next()


cdef extern from "simulation/scenario.h" namespace "infersched::simulation" nogil:
    cdef cppclass Model:
        Model()
        Latency latency
        Nanos objective_ns
        ArrivalPlan arrivals

    cdef cppclass Trouble:
        Trouble()
        Nanos from_ns
        Nanos until_ns
        double factor

    cdef cppclass ExecutorSetup:
        ExecutorSetup()
        cbool holds_all
        vector[uint32_t] models
        double speed
        double failing
        vector[Trouble] troubles

    cdef cppclass CScenario "infersched::simulation::Scenario":
        CScenario()
        vector[Model] models
        uint32_t executors
        vector[ExecutorSetup] setups
        double noise_sigma
        double straggling
        double drift_per_s
        uint64_t seed
        Nanos warm_up_ns
        uint64_t requests
        uint64_t misses_max
        Nanos interval_ns

    string problem_of(const CScenario& scenario) except +

    cdef cppclass ModelMetrics:
        uint64_t offered
        uint64_t in_time
        uint64_t late
        uint64_t dropped
        uint64_t batches
        uint64_t batched_rows

    cdef cppclass Interval:
        uint64_t offered
        uint64_t in_time

    cdef cppclass Metrics:
        vector[ModelMetrics] models
        vector[Interval] intervals
        Nanos ended_ns
        uint64_t preempted
        uint64_t arrived
        cbool stopped_early


cdef extern from "simulation/policy.h" namespace "infersched::simulation" nogil:
    cdef cppclass Policy:
        pass


cdef extern from "simulation/policies/policies.h" namespace "infersched::simulation" nogil:
    cdef cppclass StaticSettings:
        StaticSettings()
        uint32_t rows_max
        uint32_t rows_preferred
        Nanos delay_ns
        Nanos queue_timeout_ns

    unique_ptr[Policy] make_static(vector[StaticSettings] settings) except +
    unique_ptr[Policy] make_symphony() except +
    unique_ptr[Policy] make_clockwork(Nanos ahead_ns) except +
    unique_ptr[Policy] make_nexus() except +
    unique_ptr[Policy] make_shepherd() except +
    unique_ptr[Policy] make_just_enough() except +
    unique_ptr[Policy] make_bentoml() except +
    unique_ptr[Policy] make_ray_serve() except +


cdef extern from "simulation/simulator.h" namespace "infersched::simulation" nogil:
    Metrics simulate(const CScenario& scenario, Policy& policy) except +


cdef extern from "simulation/closed_form.h" namespace "infersched::simulation" nogil:
    double c_bound "infersched::simulation::staggered_bound_per_s"(
        const Latency& latency, Nanos objective_ns, uint32_t executors)
    double c_uncoordinated "infersched::simulation::uncoordinated_per_s"(
        const Latency& latency, Nanos objective_ns, uint32_t executors)
