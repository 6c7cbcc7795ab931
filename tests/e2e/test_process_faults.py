"""Processes of the scheduler that die, and its orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import psutil
import pytest

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.dataplane import wait_until
from tests.load import load
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, output, rows

CONTROL_PLANE = "scheduler.control"
DATA_PLANE = "scheduler.dataplane"


@pytest.fixture
def served(small_triton: EmbeddedTriton) -> Iterator[ServedScheduler]:
    with ServedScheduler(["--backend", small_triton.grpc_address]) as scheduler:
        yield scheduler


def replaced(served: ServedScheduler, word: str, old_pid: int) -> bool:
    """Whether another process of that kind runs."""
    for child in served.process.children(recursive=True):
        try:
            if child.pid != old_pid and word in child.cmdline():
                return child.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            continue
    return False


def test_a_killed_control_plane_does_not_touch_inference(served: ServedScheduler) -> None:
    with load(served.address, timeout=10.0) as seen:
        for _ in range(2):
            control_plane = served.child(CONTROL_PLANE)
            control_plane.kill()
            seen.wait_answers(100)
            wait_until(
                lambda pid=control_plane.pid: replaced(served, CONTROL_PLANE, pid),
                "it is started again",
            )  # type: ignore[misc]
            wait_until(served.ready, "it knows everything again")
    assert seen.errors == []


def test_a_stopped_control_plane_does_not_touch_inference(served: ServedScheduler) -> None:
    with load(served.address, timeout=10.0) as seen:
        control_plane = served.child(CONTROL_PLANE)
        control_plane.suspend()
        try:
            seen.wait_answers(500)
        finally:
            control_plane.resume()
        wait_until(served.ready, "it answers again")
    assert seen.errors == []


def test_a_killed_data_plane_is_replaced_behind_the_same_socket(served: ServedScheduler) -> None:
    """Calls out are lost with it; connections that come meanwhile wait in the socket's queue."""
    with load(served.address, clients=8, wait_for_ready=True) as seen:
        data_plane = served.child(DATA_PLANE)
        data_plane.kill()
        wait_until(lambda: replaced(served, DATA_PLANE, data_plane.pid), "it is started again")
        seen.wait_answers(200)
    assert seen.codes() <= {grpc.StatusCode.UNAVAILABLE}
    # What was out, and what a client sends on a connection before it has seen its end.
    assert seen.interruptions <= 8
    wait_until(served.ready, "all is well again")


def test_sigterm_answers_what_is_out_and_exits_0(served: ServedScheduler) -> None:
    with connected(served.address) as stub:
        # 50 ms each, one after the other: about a second of work.
        calls = [
            stub.ModelInfer.future(infer_request(rows(n, 64), model="slow"), timeout=30)
            for n in range(20)
        ]
        calls[0].result()
        ended = threading.Event()
        status: list[int] = []

        def end() -> None:
            status.append(served.terminate())
            ended.set()

        threading.Thread(target=end).start()
        for n, call in enumerate(calls):
            np.testing.assert_array_equal(output(call.result()), rows(n, 64))
        assert ended.wait(20)
    assert status == [0]


def test_sigterm_under_load_loses_no_admitted_request(served: ServedScheduler) -> None:
    """What comes after the drain began is refused with UNAVAILABLE, and nothing else is seen."""
    stop = threading.Event()
    errors: list[grpc.RpcError] = []

    def run(number: int) -> None:
        with connected(served.address) as stub:
            while not stop.is_set():
                try:
                    response = stub.ModelInfer(infer_request(rows(number)), timeout=30)
                    np.testing.assert_array_equal(output(response), rows(number))
                except grpc.RpcError as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    try:
        with load(served.address, clients=1):
            pass
        assert served.terminate() == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {error.code() for error in errors} <= {grpc.StatusCode.UNAVAILABLE}


def test_the_supervisors_end_takes_its_children_along(small_triton: EmbeddedTriton) -> None:
    with ServedScheduler(["--backend", small_triton.grpc_address]) as served:
        family = served.process.children(recursive=True)
        assert len(family) >= 2
        served.process.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE
                                   for one in family), "all of them are gone")  # fmt: skip
