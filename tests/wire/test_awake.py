"""A lone request to a quick model is awaited without sleeping; otherwise the loop sleeps."""

from __future__ import annotations

from benchmarks.stub_process import StubProcess
from tests.dataplane import DataPlane, identity_model, wait_until
from tests.wire.calls import connected, infer_request, rows
from tests.wire.fake_triton import FakeTriton

QUICK_REQUESTS = 50
# Read, reply and timer: what a request costs a loop that sleeps in between.
TURNS_OF_A_SLEEPER = 4


def turns_of(plane: DataPlane, requests: int) -> int:
    """Turns of the loop while that many requests go through, one after the other."""
    with connected(plane.address) as stub:
        stub.ModelInfer(infer_request(rows(0)), timeout=30)
        before = plane.page()["loop_turns"]
        for n in range(requests):
            stub.ModelInfer(infer_request(rows(n)), timeout=30)
        return int(plane.page()["loop_turns"]) - before


def sleeps(plane: DataPlane) -> bool:
    """A look that a control tick disturbs is worth another one."""
    return plane.turns_of_a_snapshot() <= TURNS_OF_A_SLEEPER


def test_a_lone_request_to_a_quick_model_is_awaited_awake() -> None:
    def awake() -> bool:
        return turns_of(plane, QUICK_REQUESTS) > TURNS_OF_A_SLEEPER * QUICK_REQUESTS

    with StubProcess("benchmarks.echo_backend") as quick, DataPlane() as plane:
        plane.apply([identity_model()], [quick.address])
        # The loop sleeps for the one after a slow one; on a busy machine that are many of them.
        wait_until(awake, "requests are awaited awake")
        wait_until(lambda: plane.snapshot().backends[0].inflight_batches == 0, "all is answered")
        wait_until(lambda: sleeps(plane), "it sleeps again")


def test_a_slow_model_lets_the_loop_sleep(plane: DataPlane, fake: FakeTriton) -> None:
    plane.apply([identity_model()], [fake.address])
    with connected(plane.address) as stub:
        fake.hold()
        slow = stub.ModelInfer.future(infer_request(rows(0)), timeout=60)
        wait_until(lambda: len(fake.requests) == 1, "the slow one is out")
        wait_until(lambda: sleeps(plane), "it sleeps")
        assert plane.snapshot().models[0].inflight_batches == 1, "it is out still"
        fake.release()
        slow.result()
