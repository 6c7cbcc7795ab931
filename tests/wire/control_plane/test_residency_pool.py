"""Models on demand over two Tritons: copies leave one by one, and come where there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.v1 import dataplane_pb2 as pb
from tests import models
from tests.control_plane import ControlPlane, FakeDataPlane, wait_until
from tests.wire.control_plane.words import START_TIMEOUT_S, served_by

pytestmark = pytest.mark.e2e

# Each of the two holds one model.
SETTINGS = {
    "residency.mode": "on_demand",
    "residency.budget": "1GiB",
    "residency.min_residency": "0ms",
    "defaults.weights": "1GiB",
}


@pytest.fixture
def tritons(needs_triton: None, tmp_path: Path) -> Iterator[list[EmbeddedTriton]]:
    for name in ("a", "b"):
        models.witness(tmp_path / "models", tmp_path / "notes", name)
    mode = "explicit"
    with (
        EmbeddedTriton(tmp_path / "models", model_control_mode=mode) as one,
        EmbeddedTriton(tmp_path / "models", model_control_mode=mode) as two,
    ):
        yield [one, two]


def loadable(apply: pb.Apply) -> set[str]:
    return {model.name for model in apply.loadable}


def refusing(apply: pb.Apply) -> set[str]:
    return {model.name for model in apply.models if model.batching.refusing}


def test_one_copy_leaves_and_the_last_one_is_followed_by_another_elsewhere(
    tritons: list[EmbeddedTriton], data_plane: FakeDataPlane
) -> None:
    addresses = [triton.grpc_address for triton in tritons]
    with ControlPlane(data_plane, addresses, settings=SETTINGS) as control:
        data_plane.wait_apply(lambda apply: loadable(apply) == {"a", "b"}, "all", START_TIMEOUT_S)
        with InferenceServerClient(f"unix:{control.cold_path}") as client:
            client.load_model("a", client_timeout=START_TIMEOUT_S)
        apply = data_plane.wait_apply(lambda apply: served_by(apply, "a") == {0, 1}, "both")
        index = apply.models[0].index
        out = [
            data_plane.snapshot.batches.add(model_index=index, backend_index=backend)
            for backend in (0, 1)
        ]
        assert len(out) == 2
        data_plane.send_event(pb.Event(model_wanted=pb.ModelWanted(name="b", waiting=1)))
        apply = data_plane.wait_apply(
            lambda apply: len(served_by(apply, "a")) == 1, "one copy leaves", START_TIMEOUT_S
        )
        assert refusing(apply) == set(), "the other copy goes on"
        (left,) = served_by(apply, "a")
        assert served_by(apply, "b") == set(), "a batch is out there"
        data_plane.snapshot.batches[1 - left].model_index = index + 1
        data_plane.wait_apply(
            lambda apply: served_by(apply, "b") == {1 - left}, "b is there", START_TIMEOUT_S
        )
        assert served_by(data_plane.applies[-1], "a") == {left}
        del data_plane.snapshot.batches[:]

        tritons[left].kill()
        apply = data_plane.wait_apply(
            lambda apply: "a" in loadable(apply), "it may be loaded elsewhere", START_TIMEOUT_S
        )
        assert refusing(apply) == {"a"}, "its requests wait"
        data_plane.send_event(pb.Event(model_wanted=pb.ModelWanted(name="a", waiting=1)))
        wait_until(
            lambda: served_by(data_plane.applies[-1], "a") == {1 - left}, "a", START_TIMEOUT_S
        )
        assert "b" in loadable(data_plane.applies[-1]), "it made room"
