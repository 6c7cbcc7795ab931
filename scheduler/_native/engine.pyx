"""Binding of the scheduling engine, for tests, benchmarks and the simulator.

The data plane drives the engine from C++ (csrc/gateway); nothing here is on its way.
"""

from collections import namedtuple

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

NEVER = (1 << 63) - 1
NO_BACKEND = 0xFFFFFFFF
OWN_EXECUTORS = 0xFFFFFFFF
include "reasons.pxi"
FAILURE_KINDS = ("nothing_ran", "connection", "rejected", "unsplittable", "final", "given_up",
                 "out_of_memory", "unavailable", "reset")

Member = namedtuple("Member", "request user row_begin rows")
Dispatch = namedtuple("Dispatch", "batch model backend rows rows_padded deadline_ns members")
Answer = namedtuple(
    "Answer", "request user model outcome reason code batch backend queued_ns predicted_bytes "
    "free_bytes retry_after_ns", defaults=(0, 0, 0),
)
Abandon = namedtuple("Abandon", "batch model backend")
Wake = namedtuple("Wake", "at")
Admitted = namedtuple(
    "Admitted", "handle reason retry_after_ns code predicted_ns budget_ns predicted_bytes "
    "free_bytes", defaults=(0, 0),
)
Level = namedtuple("Level", "slo_ns best_effort attainment", defaults=(0, False, 0.0))
TritonPolicy = namedtuple(
    "TritonPolicy", "timeout_ns delay_timed_out timeout_override requests_max",
    defaults=(0, False, False, 0),
)
TritonBlock = namedtuple(
    "TritonBlock", "preferred_rows queue_delay_max_ns levels default_level dynamic",
    defaults=((), 0, (TritonPolicy(),), 1, True),
)
BatchSize = namedtuple("BatchSize", "rows batches backend_ns")
LatencyState = namedtuple(
    "LatencyState", "known observations alpha_ns beta_ns margin error_mean beyond_margin "
    "rows_target rate_per_s sizes ignored",
)
IgnoredTimes = namedtuple("IgnoredTimes", "backward zero too_long prior")
MemoryState = namedtuple(
    "MemoryState", "known base_bytes bytes_per_row samples error rows_high rows_limit rows_cap "
    "added_bytes out_of_memory",
)
QueueState = namedtuple("QueueState", "requests rows bytes oldest_arrival inflight_batches merging")

_WORDS = (
    "admitted completed expired cancelled failed in_flight refused queued_requests queued_rows "
    "queued_bytes oldest_arrival_ns inflight_batches batches batch_rows_capacity retried_batches "
    "bisected_batches memory_limited_batches out_of_memory_replies slo_total slo_good"
).split()


cdef shared_ptr[TritonBatching] triton_batching(block):
    cdef shared_ptr[TritonBatching] batching = make_shared[TritonBatching]()
    cdef TritonQueuePolicy level
    batching.get().dynamic = block.dynamic
    batching.get().preferred_rows = list(block.preferred_rows)
    batching.get().queue_delay_max_ns = block.queue_delay_max_ns
    batching.get().default_level = block.default_level
    for wanted in block.levels:
        level.delay_timed_out = wanted.delay_timed_out
        level.timeout_ns = wanted.timeout_ns
        level.timeout_override = wanted.timeout_override
        level.requests_max = wanted.requests_max
        batching.get().levels.push_back(level)
    return batching


cdef class Engine:
    """One engine with a counters page of its own. Times are int nanoseconds."""

    def __cinit__(self):
        self._page = <CountersPage*>calloc(1, sizeof(CountersPage))
        if self._page is NULL:
            raise MemoryError("counters page")
        self._engine = new CppEngine(self._page)

    def __dealloc__(self):
        del self._engine
        free(self._page)

    def configure_model(
        self, model, placements, now, *, in_use=True, merge=True, rows_max=1, preferred_rows=(),
        mandatory_rows=(), queue_delay_max_ns=0, priority_levels=1, default_priority=1, slo_ns=0,
        queue_requests_max=10_000, queue_bytes_max=1 << 30, queue_age_max_ns=0,
        staged_batches_max=1, idempotent=True, cancellable=False, direct_max=0,
        sequence_idle_ns=0, admitting=True, hold_requests=0, triton=None, levels=(),
        attainment=0.99, load_aware=False, value=0.0, aging_ns=0,
    ):
        cdef ModelPolicy policy
        cdef vector[Placement] places
        cdef Placement place
        policy.in_use = in_use
        policy.merge = merge
        policy.rows_max = rows_max
        policy.preferred_rows = list(preferred_rows)
        policy.mandatory_rows = list(mandatory_rows)
        policy.queue_delay_max_ns = queue_delay_max_ns
        policy.priority_levels = priority_levels
        policy.default_priority = default_priority
        policy.slo_ns = slo_ns
        policy.queue_requests_max = queue_requests_max
        policy.queue_bytes_max = queue_bytes_max
        policy.queue_age_max_ns = queue_age_max_ns
        policy.staged_batches_max = staged_batches_max
        policy.idempotent = idempotent
        policy.cancellable = cancellable
        policy.direct_max = direct_max
        policy.sequence_idle_ns = sequence_idle_ns
        policy.admitting = admitting
        policy.hold_requests = hold_requests
        if triton is not None:
            policy.triton = triton_batching(triton)
        cdef LevelPolicy level
        for item in levels:
            level.slo_ns, level.best_effort, level.attainment = Level(*item)
            policy.levels.push_back(level)
        policy.attainment = attainment
        policy.load_aware = load_aware
        policy.value = value
        policy.aging_ns = aging_ns
        for backend, instances, ready, *more in placements:
            place.backend = backend
            place.instances = instances
            place.ready = ready
            place.executor_group = more[0] if more else OWN_EXECUTORS
            place.devices = list(more[1]) if len(more) > 1 else []
            place.device_instances = more[2] if len(more) > 2 else 0
            places.push_back(place)
        self._engine.configure_model(model, policy, places, now)

    def set_backend(self, backend, available, now):
        self._engine.set_backend(backend, available, now)

    def set_tenants(self, weights):
        self._engine.set_tenants(list(weights))

    def set_device(
        self, device, now, *, free_bytes=0, total_bytes=0, headroom_bytes=0, measured_at=None,
        known=True, fixed=False, own_bytes=0, own_measured_at=0, loads=0,
    ):
        cdef DeviceMemory memory
        memory.own_bytes = own_bytes
        memory.own_measured_at = own_measured_at
        memory.loads = loads
        memory.fixed = fixed
        memory.known = known
        memory.free_bytes = free_bytes
        memory.total_bytes = total_bytes
        memory.headroom_bytes = headroom_bytes
        memory.measured_at = now if measured_at is None else measured_at
        self._engine.set_device(device, memory, now)

    def prime_memory(self, model, device, base_bytes, bytes_per_row, rows_high=0, fixed=False):
        return self._engine.prime_memory(
            model, device, base_bytes, bytes_per_row, rows_high, fixed
        )

    def memory_status(self, model, device):
        cdef MemoryStatus status = self._engine.memory_status(model, device)
        return MemoryState(
            status.known, status.base_bytes, status.bytes_per_row, status.samples, status.error,
            status.rows_high, status.rows_limit, status.rows_cap, status.added_bytes,
            status.out_of_memory,
        )

    def device_status(self, device):
        """(whether a reading has come, free bytes by the last one, reserved bytes)."""
        cdef DeviceStatus status = self._engine.device_status(device)
        return status.seen, status.memory.free_bytes, status.reserved_bytes

    def set_draining(self, draining):
        self._engine.set_draining(draining)

    def submit(
        self, now, *, user=0, model=0, rows=1, signature=0, bytes=0, row_bytes=0, priority=0,
        arrival=None, deadline=NEVER, mergeable=True, pinned_backend=NO_BACKEND, sequence=0,
        start=False, end=False, path=0, timeout_ns=0, tenant=0,
    ):
        cdef Request request
        cdef Admission admission
        request.user = user
        request.model = model
        request.rows = rows
        request.signature = signature
        request.bytes = bytes
        request.row_bytes = row_bytes
        request.priority = priority
        request.arrival = now if arrival is None else arrival
        request.deadline = deadline
        request.mergeable = mergeable
        request.pinned_backend = pinned_backend
        request.timeout_ns = timeout_ns
        request.sequence = sequence
        request.sequence_start = start
        request.sequence_end = end
        request.path = path
        request.tenant = tenant
        admission = self._engine.submit(request, now)
        return Admitted(
            admission.handle, REASONS[<int>admission.reason], admission.retry_after_ns,
            <int>admission.code, admission.predicted_ns, admission.budget_ns,
            admission.predicted_bytes, admission.free_bytes,
        )

    def cancel(self, request, now):
        self._engine.cancel(request, now)

    def fail_all(self, reason, now):
        self._engine.fail_all(<Reason><int>REASONS.index(reason), now)

    def complete(self, batch, now):
        self._engine.complete(batch, now)

    def dispatch_failed(self, batch, kind, code, now):
        cdef int kind_index = FAILURE_KINDS.index(kind)
        cdef int status = code
        self._engine.dispatch_failed(batch, <FailureKind>kind_index, <StatusCode>status, now)

    def end_path(self, batch, now):
        self._engine.end_path(batch, now)

    def step(self, now):
        self._engine.step(now)

    @property
    def needs_step(self):
        return self._engine.needs_step()

    def take_actions(self):
        """The actions since the last call, in order, and forgets them."""
        cdef vector[BatchMember] members = self._engine.members()
        cdef vector[Action] actions = self._engine.actions()
        taken = []
        for action in actions:
            if action.kind == ActionKind.kDispatch:
                batch_members = tuple([
                    Member(members[i].request, members[i].user, members[i].row_begin,
                           members[i].rows)
                    for i in range(action.member_begin, action.member_begin + action.member_count)
                ])
                taken.append(Dispatch(action.batch, action.model, action.backend, action.rows,
                                      action.rows_padded, action.at, batch_members))
            elif action.kind == ActionKind.kAnswer:
                taken.append(Answer(action.request, action.user, action.model,
                                    OUTCOMES[<int>action.outcome], REASONS[<int>action.reason],
                                    <int>action.code, action.batch, action.backend,
                                    action.queued_ns, action.predicted_bytes,
                                    action.free_bytes, action.retry_after_ns))
            elif action.kind == ActionKind.kAbandon:
                taken.append(Abandon(action.batch, action.model, action.backend))
            else:
                taken.append(Wake(action.at))
        self._engine.clear_actions()
        return taken

    def queue_status(self, model):
        cdef QueueStatus status = self._engine.queue_status(model)
        return QueueState(status.requests, status.rows, status.bytes, status.oldest_arrival,
                          status.inflight_batches, status.merging)

    def model_stats(self, model):
        cdef ModelStats stats = self._engine.model_stats(model)
        return {
            "rows": stats.rows, "batches": stats.batches,
            "completed": stats.completed, "completed_ns": stats.completed_ns,
            "failed": stats.failed, "failed_ns": stats.failed_ns,
            "rejected": stats.rejected, "rejected_ns": stats.rejected_ns,
            "cancelled": stats.cancelled, "cancelled_ns": stats.cancelled_ns,
            "queue_ns": stats.queue_ns, "backend_ns": stats.backend_ns,
            "last_answer": stats.last_answer,
            "batch_sizes": [
                BatchSize(size.rows, size.batches, size.backend_ns) for size in stats.batch_sizes
            ],
        }

    def prime_latency(self, model, backend, rows, mean_ns, count):
        return self._engine.prime_latency(model, backend, rows, mean_ns, count)

    def latency_status(self, model, backend):
        cdef LatencyStatus status = self._engine.latency_status(model, backend)
        return LatencyState(
            status.known, status.observations, status.alpha_ns, status.beta_ns, status.margin,
            status.error_mean, status.beyond_margin, status.rows_target, status.rate_per_s,
            tuple([BatchSize(s.rows, s.batches, s.backend_ns) for s in status.sizes]),
            IgnoredTimes(**dict(status.ignored)),
        )

    @property
    def requests_inflight(self):
        return self._engine.requests_inflight()

    def check_invariants(self):
        self._engine.check_invariants()

    def save(self):
        cdef vector[uint8_t] state = self._engine.save()
        return (<char*>state.data())[:state.size()]

    def load(self, bytes state):
        cdef vector[uint8_t] copy
        copy.resize(len(state))
        if state:
            memcpy(copy.data(), <const char*>state, len(state))
        return self._engine.load(copy)

    def counters(self, model):
        """The model's counters as a dict; outcomes by (outcome, reason), only those not zero."""
        if not 0 <= model < 16384:
            raise IndexError(model)
        cdef ModelCounters* page = &self._page.models[model]
        cdef ModelCounters words = page[0]
        copied = dict(words)
        counters = {name: copied[name] for name in _WORDS}
        counters["levels"] = {
            i + 1: (page.levels[i].slo_total, page.levels[i].slo_good)
            for i in range(32) if page.levels[i].slo_total
        }
        counters["outcomes"] = {
            (OUTCOMES[o], REASONS[r]): page.outcomes[o][r]
            for o in range(5) for r in range(len(REASONS)) if page.outcomes[o][r]
        }
        counters["batch_rows"] = {
            "counts": list(page.batch_rows.counts), "sum": page.batch_rows.sum_rows
        }
        for name in ("queue_wait", "backend_time", "request_time"):
            counters[name] = {"counts": copied[name]["counts"], "sum": copied[name]["sum_ns"]}
        return counters

    def backend_counters(self, backend):
        if not 0 <= backend < 256:
            raise IndexError(backend)
        return dict(self._page.backends[backend])

    def clock_jumps(self):
        return self._page.clock_back_total, self._page.clock_ahead_total

    def run_closed_loop(
        self, uint64_t requests, uint32_t queue_length, uint32_t signatures, int64_t budget_ns
    ):
        """Drives `requests` through model 0 without Python; returns the batches completed.

        The queue is kept at `queue_length`: every reply is followed by as many submits as it
        answered. `budget_ns` is each request's time to its deadline, 0 for none.
        """
        cdef uint64_t submitted = 0, answered = 0, batches = 0, wanted = queue_length
        cdef int64_t now = 1
        cdef size_t next_batch = 0, i
        cdef vector[uint64_t] out
        cdef Request request
        cdef Action action
        with nogil:
            while answered < requests:
                now += 1000
                while submitted < wanted:
                    request.user = submitted
                    request.signature = submitted % signatures
                    request.arrival = now
                    request.deadline = now + budget_ns if budget_ns else (1 << 63) - 1
                    self._engine.submit(request, now)
                    submitted += 1
                self._engine.step(now)
                for i in range(self._engine.actions().size()):
                    action = self._engine.actions()[i]
                    if action.kind == ActionKind.kDispatch:
                        out.push_back(action.batch)
                    elif action.kind == ActionKind.kAnswer:
                        answered += 1
                        wanted += 1
                self._engine.clear_actions()
                if next_batch == out.size():
                    break
                self._engine.complete(out[next_batch], now)
                next_batch += 1
                batches += 1
                if next_batch == 4096:
                    out.erase(out.begin(), out.begin() + next_batch)
                    next_batch = 0
        return batches
