"""What is refused by learned latencies: codes, typed details, retry times."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from scheduler.v1 import dataplane_pb2 as pb
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import (
    Stub,
    connected,
    error_info,
    infer_error,
    infer_request,
    pushback_ms,
    quota_subject,
    retry_delay_ms,
    rows,
)
from tests.wire.fake_triton import FakeTriton

BATCH_S = 10
US_PER_S = 1_000_000


def model_of(batch_s: float, **batching: object) -> pb.Model:
    """Batches of which are known to take so long, whatever the backend of the test does."""
    model = identity_model(staged_batches_max=0, **batching)
    for count in (1, 2, 4):
        model.placements[0].latency_prior.add(
            rows=count, batches=20, backend_ns=round(20 * batch_s * 1e9)
        )
    return model


def slow_model(**batching: object) -> pb.Model:
    return model_of(BATCH_S, **batching)


@contextmanager
def busy(plane: DataPlane, fake: FakeTriton, **call: object) -> Iterator[Stub]:
    """While the one instance of the backend runs a batch."""
    with connected(plane.address) as stub:
        fake.hold()
        running = stub.ModelInfer.future(infer_request(rows(0)), timeout=60, **call)
        wait_until(lambda: len(fake.requests) == 1, "the slot is taken")
        yield stub
        fake.release()
        running.result()


@pytest.mark.parametrize(
    ("call_s", "budget_s", "slo_s", "text"),
    [
        (60, 2, 0, "Request timeout expired"),
        (60, 0, 2, "Request timeout expired"),
        (5, 2, 0, "Request timeout expired"),
        (5, 0, 2, "Request timeout expired"),
        (5, 8, 7, "Deadline Exceeded"),
        (5, 0, 0, "Deadline Exceeded"),
    ],
)
def test_a_deadline_below_the_floor_is_refused_at_once(
    plane: DataPlane, fake: FakeTriton, call_s: int, budget_s: int, slo_s: int, text: str
) -> None:
    """In the words that clients know of what is the earliest: gRPC's deadline, or a budget."""
    plane.apply([slow_model(slo_ns=slo_s * 1_000_000_000)], [fake.address])
    with connected(plane.address) as stub:
        parameters = {"timeout": budget_s * US_PER_S} if budget_s else {}
        hasty = infer_request(rows(1), parameters=parameters)
        error = infer_error(stub, hasty, timeout=call_s)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == text
    assert error_info(error).reason == "DEADLINE_INFEASIBLE"
    assert dict(error_info(error).metadata) == {"floorMs": str(1000 * BATCH_S)}
    assert pushback_ms(error) is None, "a retry would find the same"
    assert fake.requests == []
    assert plane.counters()["outcomes"]["refused", "deadline_infeasible"] == 1


@pytest.mark.parametrize(("floor_us", "said_ms"), [(400, 1), (5_900, 6), (6_000, 6)])
def test_a_floor_is_rounded_up(
    floor_us: int, said_ms: int, plane: DataPlane, fake: FakeTriton
) -> None:
    plane.apply([model_of(floor_us / US_PER_S)], [fake.address])
    with connected(plane.address) as stub:
        error = infer_error(stub, infer_request(rows(1), parameters={"timeout": floor_us // 2}))
    assert error_info(error).reason == "DEADLINE_INFEASIBLE"
    assert dict(error_info(error).metadata) == {"floorMs": str(said_ms)}


@pytest.mark.parametrize("level", [False, True])
def test_what_would_be_late_is_told_when_to_come_again(
    level: bool, plane: DataPlane, fake: FakeTriton
) -> None:
    slo_ns = 15_000_000_000
    own = {"levels": [pb.LevelPolicy(slo_ns=slo_ns)]} if level else {"slo_ns": slo_ns}
    plane.apply([slow_model(**own)], [fake.address])
    with busy(plane, fake) as stub:
        error = infer_error(stub, infer_request(rows(1), request_id="late"))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details().startswith("[request id: late] ")
    assert error_info(error).reason == "SLO_UNATTAINABLE"
    metadata = error_info(error).metadata
    assert 15_000 < int(metadata["predictedMs"]) <= 20_000
    assert int(metadata["budgetMs"]) <= 15_000
    assert 0 < retry_delay_ms(error) <= 5_001
    assert (pushback_ms(error) or 0) >= retry_delay_ms(error)
    assert plane.counters()["outcomes"]["refused", "predicted_late"] == 1


@pytest.mark.parametrize(("call_s", "again"), [(60, True), (2.5, False)])
def test_what_the_load_makes_late_in_the_queue_is_told_when_to_come_again(
    plane: DataPlane, fake: FakeTriton, call_s: float, again: bool
) -> None:
    """In the details. In the trailer, too, if the call has time left for another try: a client that
    waits for one although its own deadline comes before has its answer later."""
    plane.apply([model_of(0.5)], [fake.address])
    with busy(plane, fake) as stub:
        request = infer_request(rows(1), parameters={"timeout": round(1.2 * US_PER_S)})
        error = infer_error(stub, request, timeout=call_s)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "Request timeout expired"
    assert error_info(error).reason == "EXPIRED_IN_QUEUE"
    assert retry_delay_ms(error) == 500
    assert pushback_ms(error) == (500 if again else None)
    assert plane.counters()["outcomes"]["expired", "expired_in_queue"] == 1


def test_best_effort_is_not_refused_for_being_late(plane: DataPlane, fake: FakeTriton) -> None:
    levels = [pb.LevelPolicy(best_effort=True)]
    plane.apply([slow_model(slo_ns=15_000_000_000, levels=levels)], [fake.address])
    with busy(plane, fake) as stub:
        waiting = stub.ModelInfer.future(infer_request(rows(1)), timeout=60)
        plane.wait_queued(1)
        fake.release()
        waiting.result()


def test_a_tenant_over_its_share_is_told_so(plane: DataPlane, fake: FakeTriton) -> None:
    tenants = [pb.Tenant(name="small", weight=1), pb.Tenant(name="large", weight=1)]
    limits = pb.Limits(tenant_metadata_key="X-Tenant", tenants=tenants)
    plane.apply([slow_model()], [fake.address], limits)
    small, large = ({"metadata": (("x-tenant", name),)} for name in ("small", "large"))
    patient = infer_request(rows(1), parameters={"timeout": 1000 * US_PER_S})
    hasty = infer_request(rows(2), parameters={"timeout": 15 * US_PER_S})
    with busy(plane, fake, **small) as stub:
        calls = [stub.ModelInfer.future(patient, timeout=60, **large) for _ in range(3)]
        plane.wait_queued(3)
        error = infer_error(stub, hasty, **large)
        within_share = infer_error(stub, hasty, **small)
        fake.release()
        for call in calls:
            call.result()
    assert error.code() == within_share.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error).reason == "TENANT_QUOTA"
    assert quota_subject(error) == "tenant:large"
    assert retry_delay_ms(error) > 0
    assert (pushback_ms(error) or 0) >= retry_delay_ms(error)
    assert error_info(within_share).reason == "SLO_UNATTAINABLE"
    outcomes = plane.counters()["outcomes"]
    assert outcomes["refused", "tenant_quota"] == outcomes["refused", "predicted_late"] == 1
