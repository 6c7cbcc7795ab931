"""The binding of csrc/simulation: scenarios of given loads run under the reference policies.

`scheduler.simulation` says what the values mean; here they only cross into C++.
"""

from cython.operator cimport dereference
from libc.stdint cimport uint8_t
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from scheduler._native.simulation cimport *

cdef dict KINDS = {"poisson": 0, "gamma": 1, "on_off": 2, "series": 3, "recorded": 4}


cdef Latency latency_of(object affine_ns, object table_ns) except *:
    cdef vector[Nanos] measured
    if affine_ns is not None:
        if not (affine_ns[0] >= 0 and affine_ns[1] >= 0 and affine_ns[0] + affine_ns[1] < 1e15):
            raise ValueError("alpha and beta must not be negative")
        return affine(affine_ns[0], affine_ns[1])
    measured = table_ns or ()
    for at in measured:
        if at < 1 or at > 1_000_000_000_000_000:
            raise ValueError("a batch must take time, and less than 10^15 ns")
    if measured.empty():
        raise ValueError("a table of latencies must not be empty")
    return table(measured)


cdef ArrivalPlan plan_of(dict arrivals) except *:
    cdef ArrivalPlan plan
    plan.kind = <ArrivalKind><uint8_t>KINDS[arrivals["kind"]]
    plan.rate_per_s = arrivals.get("rate_per_s", 0)
    plan.shape = arrivals.get("shape", 1)
    plan.on_mean_ns = arrivals.get("on_mean_ns", 1_000_000_000)
    plan.off_mean_ns = arrivals.get("off_mean_ns", 1_000_000_000)
    plan.rates_per_s = arrivals.get("rates_per_s", ())
    plan.step_ns = arrivals.get("step_ns", 1_000_000_000)
    plan.times_ns = arrivals.get("times_ns", ())
    return plan


# The caller owns it.
cdef Policy* policy_of(str name, dict settings) except NULL:
    cdef vector[StaticSettings] static
    cdef StaticSettings one
    if name == "static":
        for model in settings["models"]:
            one = StaticSettings()
            one.rows_max = model["rows_max"]
            one.rows_preferred = model["rows_preferred"]
            one.delay_ns = model["delay_ns"]
            if model["queue_timeout_ns"] is not None:
                one.queue_timeout_ns = model["queue_timeout_ns"]
            static.push_back(one)
        return make_static(static).release()
    if name == "clockwork":
        return make_clockwork(settings["ahead_ns"]).release()
    if name == "symphony":
        return make_symphony().release()
    if name == "nexus":
        return make_nexus().release()
    if name == "shepherd":
        return make_shepherd().release()
    if name == "just_enough":
        return make_just_enough().release()
    if name == "bentoml":
        return make_bentoml().release()
    if name == "ray_serve":
        return make_ray_serve().release()
    raise ValueError(f"no reference policy is called {name}")


include "engine_simulation.pxi"


cdef class Scenario:
    """One run: models with their arrivals, executors, and which requests count."""

    cdef CScenario scenario

    def __init__(
        self,
        *,
        executors,
        noise_sigma,
        seed,
        warm_up_ns,
        requests,
        misses_max=None,
        straggling=0.0,
        drift_per_s=0.0,
        interval_ns=0,
    ):
        self.scenario.interval_ns = interval_ns
        self.scenario.executors = executors
        self.scenario.noise_sigma = noise_sigma
        self.scenario.straggling = straggling
        self.scenario.drift_per_s = drift_per_s
        self.scenario.seed = seed
        self.scenario.warm_up_ns = warm_up_ns
        self.scenario.requests = requests
        if misses_max is not None:
            self.scenario.misses_max = misses_max

    def add_model(self, arrivals, objective_ns, rows_max, *, affine_ns=None, table_ns=None):
        cdef Model model
        model.latency = latency_of(affine_ns, table_ns)
        model.latency.bound_rows(rows_max)
        model.objective_ns = objective_ns
        model.arrivals = plan_of(arrivals)
        self.scenario.models.push_back(model)

    def add_setup(self, models, speed, failing, troubles):
        """Of the next executor; `troubles` are (from_ns, until_ns, factor)."""
        cdef ExecutorSetup setup
        cdef Trouble trouble
        setup.holds_all = models is None
        setup.models = models or ()
        setup.speed = speed
        setup.failing = failing
        for trouble.from_ns, trouble.until_ns, trouble.factor in troubles:
            setup.troubles.push_back(trouble)
        self.scenario.setups.push_back(setup)

    def run(self, policy, settings):
        """Runs without the GIL. Raises ValueError for what cannot be run."""
        cdef string problem = problem_of(self.scenario)
        if not problem.empty():
            raise ValueError(problem.decode())
        cdef unique_ptr[Policy] chosen = unique_ptr[Policy](policy_of(policy, settings))
        cdef Metrics metrics
        with nogil:
            metrics = simulate(self.scenario, dereference(chosen))
        return counted(metrics)

    def run_engine(self, settings):
        """Runs the engine itself, without the GIL. Raises ValueError for what cannot be run."""
        cdef EngineSettings chosen = engine_settings_of(settings)
        cdef string problem = engine_problem_of(self.scenario, chosen)
        if not problem.empty():
            raise ValueError(problem.decode())
        cdef EngineMetrics metrics
        with nogil:
            metrics = simulate_engine(self.scenario, chosen)
        return engine_counted(metrics)


cdef dict counted(Metrics& metrics):
    return {
        "models": [
            {
                "offered": model.offered,
                "in_time": model.in_time,
                "late": model.late,
                "dropped": model.dropped,
                "batches": model.batches,
                "batched_rows": model.batched_rows,
            }
            for model in metrics.models
        ],
        "intervals": [(interval.offered, interval.in_time) for interval in metrics.intervals],
        "ended_ns": metrics.ended_ns,
        "preempted": metrics.preempted,
        "arrived": metrics.arrived,
        "stopped_early": metrics.stopped_early,
    }


def arrival_times(arrivals, seed, count):
    """The first `count` arrivals in ns, fewer where the plan ends."""
    cdef unique_ptr[Arrivals] process = unique_ptr[Arrivals](new Arrivals(plan_of(arrivals), seed))
    cdef Nanos at
    times = []
    while len(times) < count:
        at = process.get().next()
        if at == 0x7FFFFFFFFFFFFFFF:
            break
        times.append(at)
    return times


def staggered_bound(objective_ns, executors, *, affine_ns=None, table_ns=None):
    return c_bound(latency_of(affine_ns, table_ns), objective_ns, executors)


def uncoordinated(objective_ns, executors, *, affine_ns=None, table_ns=None):
    return c_uncoordinated(latency_of(affine_ns, table_ns), objective_ns, executors)
