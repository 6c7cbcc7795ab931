"""Models that come and go at the backends, as far as it matters to figures of device memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from scheduler.control.model_moves import ModelMoves
from scheduler.control.turns import Turns


def backend(*ready: str, read: bool = True, loading: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(
        catalog_read=read,
        ready_models={(name, "1") for name in ready},
        loading=frozenset(loading),
        unloading=frozenset[str](),
    )


class World:
    def __init__(self) -> None:
        self.turns = Turns()
        self.pool: Any = SimpleNamespace(watches={})
        self.moves = ModelMoves(self.pool, self.turns)

    def look(self, **watches: SimpleNamespace) -> int:
        """How often something was noticed until now."""
        self.pool.watches = watches
        self.moves.look()
        return self.turns.surprises


def test_what_is_there_at_the_first_look_has_not_come() -> None:
    world = World()
    assert world.look() == 0
    assert world.look(a=backend(read=False)) == 0
    assert world.look(a=backend("m")) == 0
    assert world.look(a=backend("m"), b=backend("n")) == 0
    assert world.look(b=backend("n")) == 0
    assert world.look(a=backend("m", "o"), b=backend("n")) == 0


def test_what_comes_and_goes_is_noticed() -> None:
    world = World()
    world.look(a=backend())
    assert world.look(a=backend("m")) == 1
    assert world.look(a=backend("m")) == 1
    assert world.look(a=backend()) == 2


def test_a_load_under_way_at_the_first_look_is_noticed_and_its_end() -> None:
    world = World()
    assert world.look(a=backend(loading=("m",))) == 1
    assert world.turns.moving_since_ns
    assert world.look(a=backend("m")) == 2
    assert not world.turns.moving_since_ns
