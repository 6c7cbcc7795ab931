"""Triton's dynamic batcher in plain Python: queues, one look at them, batches formed ahead.

Named after Triton's own parts (dynamic_batch_scheduler, scheduler_utils, instance_queue), with the
clock handed in and one thread: an idle instance takes a batch as soon as it is formed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler._native.engine import TritonBlock, TritonPolicy

NEVER = (1 << 63) - 1
SWEEP_NS = 500_000_000


@dataclass
class Request:
    user: int
    rows: int
    signature: int
    level: int
    enqueued_at: int
    timeout_at: int  # 0: none


class PolicyQueue:
    def __init__(self, policy: TritonPolicy) -> None:
        self.policy = policy
        self.unexpired: list[Request] = []
        self.delayed: list[Request] = []

    def size(self) -> int:
        return len(self.unexpired) + len(self.delayed)

    def at(self, index: int) -> Request:
        return (self.unexpired + self.delayed)[index]

    def timeout_at(self, index: int) -> int:
        return self.unexpired[index].timeout_at if index < len(self.unexpired) else 0

    def apply_policy(self, index: int, now: int, rejected: list[Request]) -> bool:
        """Whether `index` names a request after those that timed out there are out of the way."""
        while index < len(self.unexpired):
            request = self.unexpired[index]
            if not request.timeout_at or now <= request.timeout_at:
                break
            del self.unexpired[index]
            (self.delayed if self.policy.delay_timed_out else rejected).append(request)
        return index < self.size()

    def reject_timed_out(self, now: int, rejected: list[Request]) -> None:
        if not self.policy.delay_timed_out:
            late = [r for r in self.unexpired if r.timeout_at and now > r.timeout_at]
            self.unexpired = [r for r in self.unexpired if r not in late]
            rejected += late


@dataclass
class Payload:
    requests: list[Request] = field(default_factory=list)
    sealed: bool = False

    def rows(self) -> int:
        return sum(r.rows for r in self.requests)


class TritonOracle:
    """One model on one server. `run` returns what started and what timed out."""

    def __init__(self, block: TritonBlock, rows_max: int, instances: int) -> None:
        self.block, self.rows_max, self.instances = block, rows_max, instances
        self.queues = [PolicyQueue(policy) for policy in block.levels]
        self.prefetches = (
            len(block.levels) == 1
            and block.levels[0]._replace(delay_timed_out=False) == TritonPolicy()
        )
        self.payloads: list[Payload] = []
        self.current: Payload | None = None
        self.executing = 0
        self.wait_until = self.sweep_at = NEVER

    def enqueue(
        self, user: int, now: int, rows: int, signature: int, priority: int, timeout_ns: int
    ) -> bool:
        named = 1 <= priority <= len(self.queues)
        level = (priority if named else self.block.default_level) - 1
        queue = self.queues[level]
        policy = queue.policy
        if policy.requests_max and queue.size() >= policy.requests_max:
            return False
        timeout = policy.timeout_ns
        if policy.timeout_override and timeout_ns and timeout_ns < timeout:
            timeout = timeout_ns
        timeout_at = now + timeout if timeout else 0
        queue.unexpired.append(Request(user, rows, signature, level, now, timeout_at))
        return True

    def cancel(self, user: int) -> None:
        """Ours: Triton looks at cancellation only where it looks at timeouts."""
        for queue in self.queues:
            queue.unexpired = [r for r in queue.unexpired if r.user != user]
            queue.delayed = [r for r in queue.delayed if r.user != user]
        for payload in self.payloads:
            payload.requests = [r for r in payload.requests if r.user != user]
        self.payloads = [p for p in self.payloads if p.requests]
        if self.current is not None and not self.current.requests:
            self.current = None

    def size(self) -> int:
        return sum(queue.size() for queue in self.queues)

    def slot_available(self) -> bool:
        if self.prefetches:
            return len(self.payloads) < 2 * self.instances
        return self.executing + len(self.payloads) < self.instances

    def run(self, now: int) -> tuple[list[list[int]], list[int]]:
        started: list[list[int]] = []
        rejected: list[Request] = []
        changed = True
        while changed:
            changed = False
            self.wait_until = NEVER
            if self.size() and self.slot_available():
                changed = self.look(now, rejected)
            while self.payloads and self.executing < self.instances:
                started.append(self.take(now))
                changed = True
        self.sweep(now, rejected)
        return started, sorted(r.user for r in rejected)

    def sweep(self, now: int, rejected: list[Request]) -> None:
        if not self.timed() or self.slot_available():
            self.sweep_at = NEVER
        elif self.sweep_at <= now:
            for queue in self.queues:
                queue.reject_timed_out(now, rejected)
            self.sweep_at = now + SWEEP_NS if self.timed() else NEVER
        elif self.sweep_at == NEVER:
            self.sweep_at = now + SWEEP_NS

    def timed(self) -> bool:
        return any(r.timeout_at for q in self.queues for r in q.unexpired + q.delayed)

    def look(self, now: int, rejected: list[Request]) -> bool:
        """GetDynamicBatch and what the batcher thread does with its answer."""
        preferred = set(self.block.preferred_rows)
        preferred_max = max(preferred, default=0)
        delay = self.block.queue_delay_max_ns
        current = self.current
        payload_rows = current.rows() if current else 0
        pending: list[Request] = []
        rows = best_rows = best_count = closest = 0
        saturated = sealed = send_now = False
        level = index = 0

        def settle() -> bool:
            nonlocal level, index
            while level < len(self.queues):
                if self.queues[level].apply_policy(index, now, rejected):
                    return True
                level, index = level + 1, 0
            return False

        while settle():
            request = self.queues[level].at(index)
            if payload_rows + len(pending):
                total = payload_rows + rows + request.rows
                if total > preferred_max and best_rows == 0:
                    best_rows, best_count, saturated = rows, len(pending), True
                if total > self.rows_max:
                    send_now = True
                    break
                first = current.requests[0] if current else pending[0]
                if first.signature != request.signature or not self.block.dynamic:
                    sealed = send_now = True
                    break
            timeout = self.queues[level].timeout_at(index)
            closest = min(closest, timeout) if closest and timeout else closest or timeout
            pending.append(request)
            rows += request.rows
            index += 1
            settle()
            if payload_rows + rows in preferred:
                best_rows, best_count = rows, len(pending)

        oldest = min((r.enqueued_at for r in pending), default=0)
        exceeded = delay != 0 and now - oldest >= delay
        closed = saturated
        if best_rows and not exceeded:
            closed = saturated or delay == 0
            pending = pending[:best_count]
        elif not pending:
            if current is not None:
                current.sealed |= sealed
        elif send_now or payload_rows + rows >= preferred_max:
            closed = True
        elif not exceeded and delay > 0 and (current is None or payload_rows in preferred):
            self.wait_until = oldest + delay
            if closest:
                self.wait_until = min(self.wait_until, closest + 1)
            return False
        if pending:
            self.append(pending, sealed)
        if closed:
            self.current = None
        return bool(pending) or closed

    def append(self, pending: list[Request], sealed: bool) -> None:
        if self.current is None:
            self.current = Payload()
            self.payloads.append(self.current)
        for request in pending:
            queue = self.queues[request.level]
            (queue.unexpired if request in queue.unexpired else queue.delayed).remove(request)
        self.current.requests += pending
        self.current.sealed |= sealed

    def take(self, now: int) -> list[int]:
        """InstanceQueue::Dequeue: with a delay, later payloads that waited longer join."""
        payload = self.payloads.pop(0)
        if payload is self.current:
            self.current = None
        delay = self.block.queue_delay_max_ns
        while delay and not payload.sealed and self.payloads:
            front = self.payloads[0]
            oldest = min(r.enqueued_at for r in front.requests)
            if front.sealed or now - oldest <= delay:
                break
            if front is self.current:
                self.current = None
            same = front.requests[0].signature == payload.requests[0].signature
            if payload.rows() + front.rows() > self.rows_max or not same:
                break
            payload.requests += self.payloads.pop(0).requests
        self.executing += 1
        return [r.user for r in payload.requests]

    def next_moment(self) -> int:
        return min(self.wait_until, self.sweep_at) if self.size() else NEVER
