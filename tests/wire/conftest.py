"""A data plane before one fake Triton, and a stub connected to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dataplane import DataPlane, identity_model
from tests.wire.calls import Stub, connected
from tests.wire.fake_triton import FakeTriton
from tests.wire.lazy_model import World


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    with FakeTriton() as server:
        yield server


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    """A data plane that nothing was applied to; checked for leftovers at the end."""
    with DataPlane() as process:
        yield process


@pytest.fixture
def stub(fake: FakeTriton, plane: DataPlane) -> Iterator[Stub]:
    """The identity model at the fake, one batch out at a time: what queues up then is merged."""
    assert plane.apply([identity_model(staged_batches_max=0)], [fake.address]) == ""
    with connected(plane.address) as client:
        yield client
        fake.release()


@pytest.fixture
def world(plane: DataPlane, fake: FakeTriton) -> Iterator[World]:
    """The model "identity" loaded, and "lazy" loadable."""
    made = World(plane, fake)
    made.say()
    yield made
    fake.release()


@pytest.fixture
def client(world: World) -> Iterator[Stub]:
    with connected(world.plane.address) as stub:
        yield stub
