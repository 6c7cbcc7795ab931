"""Drives the compiled engine and its plain-Python twin with the same events and compares them."""

from __future__ import annotations

from typing import Any

from scheduler._native import engine as native
from tests.property.engine_oracle import Oracle

COUNTED = ("admitted", "refused", "batches", "retried_batches", "bisected_batches", "slo_total",
           "slo_good")  # fmt: skip


class Pair:
    """Two engines that must act alike. Requests and batches are named by the oracle's numbers."""

    def __init__(self) -> None:
        self.engine = native.Engine()
        self.oracle = Oracle()
        self.request_handles: dict[int, int] = {}
        self.request_numbers: dict[int, int] = {}
        self.batch_handles: dict[int, int] = {}
        self.batch_numbers: dict[int, int] = {0: 0}
        self.answers: dict[int, int] = {}
        self.dispatched = 0

    def configure(self, index: int, placements: Any, now: int, policy: dict[str, Any]) -> None:
        self.engine.configure_model(index, placements, now, **policy)
        self.oracle.configure_model(index, placements, now, **policy)
        self.compare()

    def set_backend(self, backend: int, available: bool, now: int) -> None:
        self.engine.set_backend(backend, available, now)
        self.oracle.set_backend(backend, available, now)
        self.compare()

    def set_draining(self, draining: bool) -> None:
        self.engine.set_draining(draining)
        self.oracle.set_draining(draining)

    def submit(self, now: int, **request: Any) -> int:
        handle, reason, retry_after, *_ = self.engine.submit(now, **request)
        number, expected_reason, expected_retry_after = self.oracle.submit(now, **request)
        assert (reason, retry_after) == (expected_reason, expected_retry_after)
        assert (handle == 0) == (number == 0)
        if number:
            self.request_handles[number] = handle
            self.request_numbers[handle] = number
        self.compare()
        return number

    def cancel(self, number: int, now: int) -> None:
        self.engine.cancel(self.request_handles[number], now)
        self.oracle.cancel(number, now)
        self.compare()

    def complete(self, number: int, now: int) -> None:
        self.engine.complete(self.batch_handles[number], now)
        self.oracle.complete(number, now)
        self.compare()

    def dispatch_failed(self, number: int, kind: str, code: int, now: int) -> None:
        self.engine.dispatch_failed(self.batch_handles[number], kind, code, now)
        self.oracle.dispatch_failed(number, kind, code, now)
        self.compare()

    def fail_all(self, reason: str, now: int) -> None:
        self.engine.fail_all(reason, now)
        self.oracle.fail_all(reason, now)
        self.compare()

    def step(self, now: int) -> None:
        self.engine.step(now)
        self.oracle.step(now)
        self.compare()
        self.compare_counters()

    def reload(self) -> None:
        """Goes on with an engine that was loaded from the saved state of this one."""
        state = self.engine.save()
        fresh = native.Engine()
        assert fresh.load(state)
        assert fresh.save() == state
        self.engine = fresh

    def compare(self) -> None:
        actions = [self.translate(action) for action in self.engine.take_actions()]
        assert actions == self.oracle.take_actions()
        self.engine.check_invariants()
        assert self.engine.requests_inflight == len(self.oracle.requests)
        for index in range(len(self.oracle.models)):
            assert tuple(self.engine.queue_status(index)) == self.oracle.queue_status(index)

    def compare_counters(self) -> None:
        for model in self.oracle.models:
            page = self.engine.counters(model.index)
            counts = dict(model.counts)
            for name in COUNTED:
                refused = sum(n for key, n in counts.items() if key[0] == "refused")
                expected = refused if name == "refused" else counts.get(name, 0)
                assert page[name] == expected, name
            outcomes = {key: n for key, n in counts.items() if isinstance(key, tuple) and n}
            assert page["outcomes"] == outcomes
            self.compare_stats(model)
            status = self.oracle.queue_status(model.index)
            assert (page["queued_requests"], page["queued_rows"]) == status[:2]

    def compare_stats(self, model: Any) -> None:
        stats = self.engine.model_stats(model.index)
        sizes = stats.pop("batch_sizes")
        assert stats.pop("last_answer") == model.stats.last_answer
        assert stats == {name: model.stats.sums[name] for name in stats}
        assert [tuple(size) for size in sizes] == [
            (rows, *counted) for rows, counted in sorted(model.stats.sizes.items())
        ]

    def translate(self, action: Any) -> tuple[Any, ...]:
        """An action of the engine in the oracle's names."""
        if isinstance(action, native.Dispatch):
            self.dispatched += 1
            self.batch_handles[self.dispatched] = action.batch
            self.batch_numbers[action.batch] = self.dispatched
            members = tuple(
                (self.request_numbers[member.request], *member[1:]) for member in action.members
            )
            return ("dispatch", self.dispatched, *action[1:6], members)
        if isinstance(action, native.Answer):
            number = self.request_numbers[action.request]
            self.answers[number] = self.answers.get(number, 0) + 1
            batch = self.batch_numbers[action.batch]
            return ("answer", number, *action[1:6], batch, *action[7:9])
        if isinstance(action, native.Abandon):
            return ("abandon", self.batch_numbers[action.batch], *action[1:])
        return ("wake", action.at)
