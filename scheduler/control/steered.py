"""What model residency adds to the wanted state of the data plane."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.v1 import dataplane_pb2 as pb


@dataclass(frozen=True)
class Steered:
    """What residency adds to the wanted state."""

    loadable: tuple[pb.LoadableModel, ...] = ()
    refusing: frozenset[str] = frozenset()  # models that take nothing new where they are
    leaving: frozenset[tuple[str, str]] = frozenset()  # copies: model and backend


NOTHING_STEERED = Steered()
