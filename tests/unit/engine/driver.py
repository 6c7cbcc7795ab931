"""One engine with one model, driven in the words of the unit tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scheduler._native.engine import Abandon, Answer, Dispatch, Engine, Wake

US = 1_000
MS = 1_000_000
SECOND = 1_000 * MS


class Driver:
    """Every call moves the clock to `at` (ns) and keeps the actions it caused."""

    def __init__(self, backends: int | Iterable[tuple[Any, ...]] = 1, **policy: Any) -> None:
        self.engine = Engine()
        self.now = SECOND
        self.placements = (
            [(b, 1, True) for b in range(backends)] if isinstance(backends, int) else [*backends]
        )
        self.policy = policy
        self.actions: list[Any] = []
        self.engine.configure_model(0, self.placements, self.now, **policy)
        for backend, *_ in self.placements:
            self.engine.set_backend(backend, True, self.now)

    def configure(self, placements: list[tuple[Any, ...]] | None = None, **p: Any) -> None:
        self.placements = self.placements if placements is None else placements
        self.policy = self.policy | p
        self.engine.configure_model(0, self.placements, self.now, **self.policy)

    def after(self, duration: int) -> Driver:
        self.now += duration
        return self

    def submit(self, user: int = 0, **request: Any) -> int:
        """The handle; the test fails when the request is refused."""
        admitted = self.engine.submit(self.now, user=user, **request)
        assert admitted.handle, admitted.reason
        return admitted.handle

    def submit_many(self, users: Iterable[int], **request: Any) -> list[int]:
        return [self.submit(user, **request) for user in users]

    def refusal(self, **request: Any) -> str:
        admitted = self.engine.submit(self.now, **request)
        assert admitted.handle == 0
        return admitted.reason

    def cancel(self, handle: int) -> None:
        self.engine.cancel(handle, self.now)
        self._collect()

    def step(self) -> list[Dispatch]:
        """The batches that this step dispatched."""
        self.engine.step(self.now)
        return [a for a in self._collect() if isinstance(a, Dispatch)]

    def complete(self, batch: Dispatch) -> list[Answer]:
        self.engine.complete(batch.batch, self.now)
        return [a for a in self._collect() if isinstance(a, Answer)]

    def fail(self, batch: Dispatch, kind: str, code: int = 13) -> list[Answer]:
        self.engine.dispatch_failed(batch.batch, kind, code, self.now)
        return [a for a in self._collect() if isinstance(a, Answer)]

    def _collect(self) -> list[Any]:
        taken = self.engine.take_actions()
        self.actions += taken
        self.engine.check_invariants()
        return taken

    def answers(self) -> dict[int, tuple[str, str]]:
        """(outcome, reason) by user, of all answers so far; one user is answered once."""
        answers = [a for a in self.actions if isinstance(a, Answer)]
        by_user = {a.user: (a.outcome, a.reason) for a in answers}
        assert len(by_user) == len(answers)
        return by_user

    def wakes(self) -> list[int]:
        return [a.at for a in self.actions if isinstance(a, Wake)]

    def abandoned(self) -> list[int]:
        return [a.batch for a in self.actions if isinstance(a, Abandon)]


def users(batch: Dispatch) -> list[int]:
    return [member.user for member in batch.members]
