# Settings of a run of the engine, and what it counted: included by simulation.pyx.

from scheduler._native.engine_simulation cimport *

cdef tuple QUANTILES = (0.5, 0.9, 0.99, 0.999)


cdef ModelPolicy engine_policy_of(dict wanted) except *:
    cdef ModelPolicy policy
    cdef LevelPolicy level
    policy.in_use = True
    policy.rows_max = wanted["rows_max"]
    policy.slo_ns = wanted["slo_ns"]
    policy.load_aware = wanted["load_aware"]
    policy.attainment = wanted["attainment"]
    policy.value = wanted["value"]
    policy.aging_ns = wanted["aging_ns"]
    policy.merge = wanted["merge"]
    policy.idempotent = wanted["idempotent"]
    policy.cancellable = wanted["cancellable"]
    policy.priority_levels = wanted["priority_levels"]
    policy.default_priority = wanted["default_priority"]
    policy.staged_batches_max = wanted["staged_batches_max"]
    policy.preferred_rows = wanted["preferred_rows"]
    policy.mandatory_rows = wanted["mandatory_rows"]
    policy.queue_delay_max_ns = wanted["queue_delay_ns"]
    policy.queue_age_max_ns = wanted["queue_age_ns"]
    policy.queue_requests_max = wanted["queue_requests_max"]
    policy.queue_bytes_max = wanted["queue_bytes_max"]
    for slo_ns, best_effort, attainment in wanted["levels"]:
        level.slo_ns = slo_ns
        level.best_effort = best_effort
        level.attainment = attainment
        policy.levels.push_back(level)
    return policy


cdef ModelSetup model_setup_of(dict wanted) except *:
    cdef ModelSetup setup
    cdef Placement placement
    cdef RequestClass kind
    setup.policy = engine_policy_of(wanted["policy"])
    setup.base_bytes = wanted["base_bytes"]
    setup.bytes_per_row = wanted["bytes_per_row"]
    for backend, instances, group, devices in wanted["placements"]:
        placement.backend = backend
        placement.instances = instances
        placement.executor_group = 0xFFFFFFFF if group is None else group
        placement.ready = True
        placement.devices = list(devices)
        setup.placements.push_back(placement)
    for one in wanted["classes"]:
        kind.share = one["share"]
        kind.priority = one["priority"]
        kind.objective_ns = one["objective_ns"]
        kind.tenant = one["tenant"]
        kind.rows = one["rows"]
        kind.signatures = one["signatures"]
        kind.row_bytes = one["row_bytes"]
        setup.classes.push_back(kind)
    return setup


cdef DeviceSetup device_setup_of(dict wanted) except *:
    cdef DeviceSetup setup
    cdef TenantUse use
    setup.total_bytes = wanted["total_bytes"]
    setup.headroom_bytes = wanted["headroom_bytes"]
    setup.poll_ns = wanted["poll_ns"]
    for use.from_ns, use.bytes in wanted["tenant"]:
        setup.tenant.push_back(use)
    return setup


cdef EngineSettings engine_settings_of(dict wanted) except *:
    cdef EngineSettings settings
    cdef Fault fault
    settings.rows_max = wanted["rows_max"]
    for model in wanted["models"]:
        settings.models.push_back(model_setup_of(model))
    for device in wanted["devices"]:
        settings.devices.push_back(device_setup_of(device))
    settings.tenants = wanted["tenants"]
    settings.speeds = wanted["speeds"]
    settings.drift_per_s = wanted["drift_per_s"]
    settings.wire_ns = wanted["wire_ns"]
    settings.check_truths = wanted["check_truths"]
    settings.keep_fates = wanted["keep_fates"]
    if wanted["forced"] is not None:
        settings.forced_ordinal = wanted["forced"]
    if wanted["kept"] is not None:
        settings.kept_ordinal = wanted["kept"]
    if wanted["stop_ns"] is not None:
        settings.stop_ns = wanted["stop_ns"]
    for one in wanted["faults"]:
        fault.kind = <FaultKind><uint8_t>one["kind"]
        fault.from_ns = one["from_ns"]
        fault.until_ns = one["until_ns"]
        fault.shift_ns = one["shift_ns"]
        fault.backend = 0xFFFFFFFF if one["backend"] is None else one["backend"]
        fault.model = one["model"]
        fault.factor = one["factor"]
        fault.failure = <FailureKind><uint8_t>one["failure"]
        fault.code = <StatusCode><uint8_t>one["code"]
        settings.faults.push_back(fault)
    return settings


cdef dict quantiles_of(Histogram& histogram):
    return {part: histogram.quantile(part) for part in QUANTILES}


cdef dict engine_counted(EngineMetrics& metrics):
    found = counted(metrics.totals)
    found["engine"] = {
        "classes": [
            [
                {
                    "offered": kind.offered,
                    "in_time": kind.in_time,
                    "late": kind.late,
                    "refused": kind.refused,
                    "expired": kind.expired,
                    "failed": kind.failed,
                    "cancelled": kind.cancelled,
                    "unanswered": kind.unanswered,
                }
                for kind in model
            ]
            for model in metrics.classes
        ],
        "waits_ns": quantiles_of(metrics.waits),
        "latencies_ns": quantiles_of(metrics.latencies),
        "arrivals_ns": metrics.arrivals_ns,
        "fates": bytes([<uint8_t>fate for fate in metrics.fates]),
        "faults_begun": metrics.faults_begun,
        "ended_ns": metrics.totals.ended_ns,
        "steps": metrics.steps,
        "failed_batches": metrics.failed_batches,
        "cancels": metrics.cancels,
        "memory_failures": metrics.memory_failures,
        "memory_failures_fitting": metrics.memory_failures_fitting,
        "memory": [
            {
                "known": need.known,
                "base_bytes": need.base_bytes,
                "bytes_per_row": need.bytes_per_row,
                "samples": need.samples,
                "error": need.error,
                "rows_high": need.rows_high,
                "out_of_memory": need.out_of_memory,
            }
            for need in metrics.memory
        ],
        "broken": metrics.broken.decode(),
    }
    return found


cdef class DecisionLoad:
    """A closed loop around the engine, in compiled code: to measure what decisions cost."""

    cdef unique_ptr[CDecisionLoad] load

    def __init__(self, *, models, queue_length, rows_max=64, load_aware=True, seed=1):
        cdef DecisionSettings settings
        settings.models = models
        settings.queue_length = queue_length
        settings.rows_max = rows_max
        settings.load_aware = load_aware
        settings.seed = seed
        self.load.reset(new CDecisionLoad(settings))

    def fill(self):
        with nogil:
            self.load.get().fill()

    def run(self, uint64_t requests):
        """Whether all were completed."""
        cdef cbool done
        with nogil:
            done = self.load.get().run(requests)
        return done
