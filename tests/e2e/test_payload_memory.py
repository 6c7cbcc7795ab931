"""Large tensors by shared memory between the whole of the scheduler and real Tritons."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, service_pb2

from scheduler.backends.embedded_triton import EmbeddedTriton
from scheduler.control.steering import SteeringClient
from scheduler.dataplane.segment import DIRECTORY, PREFIX
from scheduler.v1 import dataplane_pb2 as pb
from tests import models
from tests.dataplane import wait_until
from tests.serving import ServedScheduler
from tests.wire.calls import Stub, connected, infer_request, output, rows

DIMS = (3, 96, 96)  # 110 KB a row
WIDTH = 3 * 96 * 96
Request = service_pb2.ModelInferRequest

# Gives more than its configuration says.
LIAR = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            rows = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            wide = np.concatenate([rows, rows], axis=1)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", wide)]))
        return answers
"""


@pytest.fixture(scope="module")
def repository(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("payload")
    models.identity(directory, "image", dims=DIMS, max_batch_size=8)
    models.identity(directory, "variable", dims=(-1,), max_batch_size=4)
    models.identity(directory, "texts", datatype="BYTES", dims=(4,), max_batch_size=4)
    models.identity(directory, "whole", dims=(WIDTH,), max_batch_size=0)
    models.slow(directory, "slow", per_execution_s=0.02, dims=(WIDTH,), max_batch_size=4)
    source = directory.parent / "liar.py"
    source.write_text(LIAR)
    models.write_model(
        directory,
        "liar",
        source=source,
        inputs=[models.Tensor("INPUT0", dims=(WIDTH,))],
        outputs=[models.Tensor("OUTPUT0", dims=(WIDTH,))],
        max_batch_size=2,
    )
    return directory


@pytest.fixture(scope="module")
def one(repository: Path) -> Iterator[EmbeddedTriton]:
    with EmbeddedTriton(repository) as running:
        yield running


@pytest.fixture
def served(one: EmbeddedTriton) -> Iterator[ServedScheduler]:
    if not one.running:
        one.start_ready()
    with ServedScheduler(["--backend", one.grpc_address]) as scheduler:
        wait_registered(one)
        yield scheduler


def regions_at(triton: EmbeddedTriton) -> dict[str, str]:
    """Names and keys of the payload regions that the Triton has."""
    with InferenceServerClient(triton.grpc_address) as client:
        found = client.get_system_shared_memory_status().regions
    return {name: region.key for name, region in found.items() if name.startswith(PREFIX)}


def wait_registered(triton: EmbeddedTriton) -> None:
    def living() -> bool:
        paths = [DIRECTORY / key.lstrip("/") for key in regions_at(triton).values()]
        return any(path.exists() for path in paths)

    wait_until(living, "the region is registered", timeout_s=30)


def snapshot(served: ServedScheduler) -> pb.SharedMemorySnapshot:
    """The shared memory of the data plane, by the socket that the control plane steers it by."""
    command = served.child("scheduler.control").cmdline()
    parameters = json.loads(command[command.index("--parameters") + 1])

    async def ask() -> pb.SharedMemorySnapshot:
        client = SteeringClient(Path(parameters["steering_socket"]), lambda _: None)
        serving = asyncio.create_task(client.run())
        while not client.connected:
            await asyncio.sleep(0.01)
        try:
            return (await client.snapshot(timeout_s=20.0)).shared_memory
        finally:
            serving.cancel()

    return asyncio.run(asyncio.wait_for(ask(), 30))


def wait_used(served: ServedScheduler, stub: Stub) -> None:
    """Until a large request goes by shared memory. It is refused while no Triton is ready."""

    def by_memory() -> bool:
        before = snapshot(served).calls
        try:
            ask(stub, 1.0, "slow")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return snapshot(served).calls > before

    wait_until(by_memory, "large tensors go by shared memory")


def ask(stub: Stub, first: float, model: str, count: int = 1) -> None:
    values = rows(first, count, WIDTH)
    answer = stub.ModelInfer(infer_request(values, model=model), timeout=60)
    np.testing.assert_array_equal(output(answer).reshape(count, WIDTH), values)


def random_request(chances: random.Random, number: int) -> Request:
    """Large and small ones, of every model."""
    model = chances.choice(("image", "variable", "texts", "whole", "liar"))
    request = Request(model_name=model, id=chances.choice(("", f"request-{number}")))
    count = chances.randint(1, 5)
    if model == "texts":
        count = min(count, 4)
        sizes = [chances.choice((0, 7, 30_000)) for _ in range(4 * count)]
        raw = b"".join(size.to_bytes(4, "little") + chances.randbytes(size) for size in sizes)
        request.inputs.add(name="INPUT0", datatype="BYTES", shape=[count, 4])
    else:
        shape = {"image": [count, *DIMS], "whole": [WIDTH]}.get(model, [count, WIDTH])
        if model == "variable":
            shape[1] = chances.choice((1, 700, 40_000))
        raw = np.random.default_rng(number).random(shape, dtype=np.float32).tobytes()
        request.inputs.add(name="INPUT0", datatype="FP32", shape=shape)
    request.raw_input_contents.append(raw)
    if chances.random() < 0.3:
        request.outputs.add(name="OUTPUT0")
    return request


def result_of(call: grpc.Future) -> object:
    error = call.exception(timeout=60)
    return (error.code(), error.details()) if error is not None else call.result()


def test_answers_are_those_of_triton(
    one: EmbeddedTriton, served: ServedScheduler, seed: int
) -> None:
    """Byte for byte, merged or not, of sizes known or not, told rightly or wrongly."""
    chances = random.Random(seed)
    requests = [random_request(chances, number) for number in range(150)]
    with connected(served.address) as stub, connected(one.grpc_address) as straight:
        for begin in range(0, len(requests), 10):
            group = requests[begin : begin + 10]
            calls = [stub.ModelInfer.future(request, timeout=60) for request in group]
            for request, call in zip(group, calls, strict=True):
                # Larger ones than a batch are split by the scheduler and refused by Triton.
                direct = straight.ModelInfer.future(request, timeout=60)
                if direct.exception(timeout=60) is None:
                    assert result_of(call) == direct.result(), f"seed {seed}: {request.model_name}"
                call.exception(timeout=60)
    assert snapshot(served).calls > 30
    wait_until(lambda: snapshot(served).used_bytes == 0, "no block is held")


def test_cancels_and_deadlines_mix_no_memory(served: ServedScheduler, seed: int) -> None:
    chances = random.Random(seed)
    with connected(served.address) as stub:
        calls = []
        for number in range(200):
            values = rows(number, chances.randint(1, 3), WIDTH)
            timeout = chances.choice((0.03, 0.1, 60, 60))
            call = stub.ModelInfer.future(infer_request(values, model="slow"), timeout=timeout)
            calls.append((values, call))
            if chances.random() < 0.3:
                chances.choice(calls)[1].cancel()
            if number % 8 == 7:
                ask(stub, -number, "slow")
        answered = 0
        for values, call in calls:
            if call.cancelled() or call.exception(timeout=60) is not None:
                continue
            np.testing.assert_array_equal(output(call.result()), values, err_msg=f"seed {seed}")
            answered += 1
    assert answered > 20
    assert snapshot(served).calls > 20
    wait_until(lambda: snapshot(served).used_bytes == 0, "no block is held", timeout_s=30)


def test_a_triton_that_dies_under_load_gets_the_memory_again(
    one: EmbeddedTriton, served: ServedScheduler
) -> None:
    problems: list[str] = []
    stop = threading.Event()

    def load(lane: int) -> None:
        with connected(served.address) as stub:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    ask(stub, lane * 1000 + number, "slow", 1 + number % 2)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        problems.append(str(error))
                except AssertionError as error:
                    problems.append(str(error))

    threads = [threading.Thread(target=load, args=(lane,)) for lane in range(4)]
    with connected(served.address) as stub:
        wait_used(served, stub)
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: snapshot(served).calls > 20, "there is load", timeout_s=30)
            one.kill()
            one.start_ready()
            wait_registered(one)
            wait_used(served, stub)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert problems == []


def test_the_memory_goes_when_the_scheduler_goes(
    one: EmbeddedTriton, served: ServedScheduler
) -> None:
    with connected(served.address) as stub:
        wait_used(served, stub)
    assert len(regions_at(one)) == 1
    (key,) = regions_at(one).values()
    assert served.terminate() == 0
    assert regions_at(one) == {}
    assert not (DIRECTORY / key.lstrip("/")).exists()


def test_a_data_plane_that_is_killed_leaves_nothing(
    one: EmbeddedTriton, served: ServedScheduler
) -> None:
    """Its successor has memory of its own, and takes that of the former one away."""
    with connected(served.address) as stub:
        wait_used(served, stub)
    before = regions_at(one)
    served.child("scheduler.dataplane").kill()

    def replaced() -> bool:
        now = regions_at(one)
        return len(now) == 1 and not now.keys() & before.keys()

    wait_until(replaced, "only the new region is left", timeout_s=30)
    (key,) = before.values()
    assert not (DIRECTORY / key.lstrip("/")).exists()
    with connected(served.address) as stub:
        wait_used(served, stub)


def test_it_can_be_switched_off(one: EmbeddedTriton, tmp_path: Path) -> None:
    if not one.running:
        one.start_ready()
    config = tmp_path / "off.yaml"
    config.write_text(f"backends: [{{address: '{one.grpc_address}', shared_memory: off}}]\n")
    with ServedScheduler(["--config", str(config)]) as scheduler:
        with connected(scheduler.address) as stub:
            for number in range(3):
                ask(stub, number, "slow")
        assert snapshot(scheduler).calls == 0
        assert regions_at(one) == {}
