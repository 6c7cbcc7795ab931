"""A data plane with the model "identity" loaded and "lazy" loadable, and requests that wait."""

from __future__ import annotations

import grpc

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model
from tests.wire.calls import Stub, infer_request, rows
from tests.wire.fake_triton import FakeTriton, Request

SECOND_NS = 10**9
LONG_S = 60
LAZY = pb.LoadableModel(name="lazy")


def lazy_model(**batching: object) -> pb.Model:
    return identity_model(1, "lazy", **batching)


def lazy(value: float = 1.0, **request: object) -> Request:
    return infer_request(rows(value), model="lazy", **request)  # type: ignore[arg-type]


class World:
    """A data plane with the model "identity" loaded and "lazy" loadable."""

    def __init__(self, plane: DataPlane, fake: FakeTriton) -> None:
        self.plane = plane
        self.fake = fake

    def say(
        self, *models: pb.Model, loadable: pb.LoadableModel | None = LAZY, **limits: int
    ) -> None:
        """Applies these models beside "identity"."""
        error = self.plane.apply(
            [identity_model(), *models],
            [self.fake.address],
            pb.Limits(**limits) if limits else None,
            loadable=[loadable] if loadable else [],
        )
        assert error == ""

    def load(self, **batching: object) -> None:
        """The model is ready, and stays loadable."""
        self.say(lazy_model(**batching))

    def wanted(self) -> pb.ModelWanted:
        return self.plane.wait_event("model_wanted").model_wanted


def park(world: World, client: Stub, value: float = 1.0, **call: float) -> grpc.Future:
    before = world.plane.page()["loading_waiting"]
    future = client.ModelInfer.future(lazy(value), timeout=call.pop("timeout", LONG_S), **call)
    world.plane.wait_parked(before + 1)
    return future
