"""What the data plane is told of latencies before a first batch, and tells of those it learned."""

from __future__ import annotations

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import connected, infer_request, rows
from tests.wire.fake_triton import FakeTriton

MS = 1_000_000


def primed(times_ms: dict[int, float], **batching: object) -> pb.Model:
    """The model whose batches of these sizes are said to take these times."""
    model = identity_model(**batching)  # type: ignore[arg-type]
    for size, ms in times_ms.items():
        model.placements[0].latency_prior.add(
            rows=size, batches=100, backend_ns=round(100 * ms * MS)
        )
    return model


def learned(plane: DataPlane, index: int = 0) -> pb.LatencySnapshot:
    (model,) = plane.snapshot(index).models
    assert model.index == index
    (latency,) = model.latencies
    return latency


def test_a_prior_is_known_before_the_first_batch(plane: DataPlane, fake: FakeTriton) -> None:
    model = primed({n: 5.072 + 1.053 * n for n in (1, 2, 4, 8, 16, 32)})
    assert plane.apply([model, identity_model(3, "other")], [fake.address]) == ""
    latency = learned(plane)
    assert latency.observations == 0
    assert abs(latency.alpha_ns - 1.053 * MS) < 0.02 * MS
    assert abs(latency.beta_ns - 5.072 * MS) < 0.1 * MS
    assert (learned(plane, 3).alpha_ns, learned(plane, 3).beta_ns) == (0, 0)


def test_one_size_tells_no_slope(plane: DataPlane, fake: FakeTriton) -> None:
    """Half of the time would be said to be of each row, where nobody knows."""
    assert plane.apply([primed({4: 40.0}), identity_model(3, "other")], [fake.address]) == ""
    told, new = learned(plane), learned(plane, 3)
    assert (told.known, told.alpha_ns, told.beta_ns) == (True, 0, 0)
    assert not new.known
    with connected(plane.address) as stub:
        for number in range(20):
            stub.ModelInfer(infer_request(rows(number, count=4)), timeout=30)
    wait_until(lambda: learned(plane).observations == 20, "twenty batches observed")
    seen = learned(plane)
    assert (seen.known, seen.alpha_ns, seen.beta_ns) == (True, 0, 0)
    assert [size.rows for size in seen.sizes] == [4]


def test_latencies_are_told_of_the_models_that_are_asked_for(
    plane: DataPlane, fake: FakeTriton
) -> None:
    assert plane.apply([identity_model(), identity_model(3, "other")], [fake.address]) == ""
    assert [m.index for m in plane.snapshot(3, 9).models] == [3]
    everything = plane.snapshot()
    assert [m.index for m in everything.models] == [0, 3]
    assert not any(m.latencies for m in everything.models)


def test_batches_that_ran_replace_the_prior(plane: DataPlane, fake: FakeTriton) -> None:
    assert plane.apply([primed({1: 400.0, 8: 400.0})], [fake.address]) == ""
    with connected(plane.address) as stub:
        for number in range(20):
            stub.ModelInfer(infer_request(rows(number)), timeout=30)
    wait_until(lambda: learned(plane).observations == 20, "twenty batches observed")
    (size,) = learned(plane).sizes
    assert (size.rows, size.batches) == (1, 20)
    assert 0 < size.backend_ns / size.batches < 200 * MS
    # Another Apply with a prior does not bring it back.
    assert plane.apply([primed({1: 500.0}, slo_ns=3_000 * MS)], [fake.address]) == ""
    again = learned(plane)
    assert again.observations == 20
    assert again.sizes[0] == size


def test_a_prior_that_makes_no_sense_is_ignored(plane: DataPlane, fake: FakeTriton) -> None:
    model = identity_model()
    prior = model.placements[0].latency_prior
    prior.add(rows=0, batches=100, backend_ns=100 * MS)
    prior.add(rows=1, batches=0, backend_ns=100 * MS)
    prior.add(rows=2, batches=100, backend_ns=0)
    prior.add(rows=3, batches=1, backend_ns=2**63 - 1)
    assert plane.apply([model], [fake.address]) == ""
    assert (learned(plane).alpha_ns, learned(plane).beta_ns) == (0, 0)
    assert learned(plane).ignored == {"prior": 3}
    with connected(plane.address) as stub:
        stub.ModelInfer(infer_request(rows(1)), timeout=30)
