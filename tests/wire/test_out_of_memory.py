"""A backend whose device runs out of memory: smaller batches, and no error for the clients."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from tests.dataplane import DataPlane
from tests.wire.calls import Stub, error_info, infer_error, infer_request, output, rows
from tests.wire.fake_triton import Behaviour, FakeTriton, Request, Response, identity, values_of

# As the frameworks say it, and what Triton and its python backend put before it.
TEXTS = {
    "pytorch-2": "Failed to process the request(s) for model instance 'm_0_0', message: "
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity "
    "of 23.65 GiB of which 1.21 GiB is free.",
    "pytorch-1": "PyTorch execute failure: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; "
    "10.76 GiB total capacity; 9.71 GiB already allocated; 9.56 MiB free; 9.90 GiB reserved in "
    "total by PyTorch)",
    "pytorch-error": "torch.OutOfMemoryError: Allocation on device",
    "cuda": "RuntimeError: CUDA error: out of memory",
    "cuda-driver": "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY",
    "cublas": "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
    "onnxruntime": "onnx runtime error 6: Non-zero status code returned while running Conv node. "
    "Name:'Conv_3' Status Message: bfc_arena.cc:342 void* onnxruntime::BFCArena::"
    "AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size "
    "765249024",
    "onnxruntime-limit": "onnx runtime error 1: bfc_arena.cc:326 Available memory of 1024 is "
    "smaller than requested bytes of 4096",
    "onnxruntime-cuda": "onnx runtime error 6: CUDA failure 2: out of memory ; GPU=0 ; "
    "hostname=node ; expr=cudaMalloc((void**)&p, size);",
    "tensorrt": "Requested amount of GPU memory (3887181312 bytes) could not be allocated. There "
    "may not be enough free memory for allocation to succeed.",
    "tensorrt-code": "2: [executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory "
    "(no further information)",
    "tensorrt-allocate": "rtSafe/safeRuntime.cpp (25) - Cuda Error in allocate: 2 (out of memory)",
    "tensorrt-driver": "[resizingAllocator.cpp::allocate::69] Error Code 1: Cuda Driver (out of "
    "memory)",
    "tensorrt-user": "[tunable_graph.cpp:create:117] autotuning: User allocator error allocating "
    "86114304000-byte buffer",
    "tensorrt-llm": "[TensorRT-LLM][ERROR] CUDA runtime error in ::cudaMallocAsync(ptr, n, "
    "mCudaStream->get()): out of memory",
    "pytorch-driver": "RuntimeError: CUDA driver error: out of memory",
    "pytorch-hip": "RuntimeError: HIP error: out of memory",
    "pycuda": "pycuda._driver.MemoryError: cuMemAlloc failed: out of memory",
    "triton": "Failed to allocate CUDA memory with byte size 4194304 on GPU 0: "
    "CNMEM_STATUS_OUT_OF_MEMORY, falling back to pinned system memory",
    "tensorflow": "OOM when allocating tensor with shape[64,1024] and type float on "
    "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
    "jax": "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.",
}
OTHERS = [
    "a row is poisoned",
    "shared memory region 'out of memory' is unknown",
    "the host is out of memory",
    "",
]


def arena(text: str, rows_max: int) -> Behaviour:
    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        if len(values_of(request)) > rows_max:
            context.abort(grpc.StatusCode.INTERNAL, text)
        return identity(request)

    return behaviour


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_no_client_sees_it(text: str, stub: Stub, plane: DataPlane, fake: FakeTriton) -> None:
    fake.behaviour = arena(text, 3)
    calls = [fake.occupy(stub)]
    values = [float(n) for n in range(16)]
    calls += [stub.ModelInfer.future(infer_request(rows(value)), timeout=60) for value in values]
    plane.wait_queued(len(values))
    fake.release()
    for value, call in zip(values, calls[1:], strict=True):
        np.testing.assert_array_equal(output(call.result()), rows(value))
    counters = plane.counters()
    assert counters["out_of_memory_replies"] >= 1
    assert (counters["failed"], counters["bisected_batches"]) == (0, 0)


def test_one_request_is_cut_and_put_together(stub: Stub, fake: FakeTriton) -> None:
    fake.behaviour = arena(TEXTS["cuda"], 3)
    whole = rows(1.0, 16)
    answer = stub.ModelInfer(infer_request(whole), timeout=60)
    np.testing.assert_array_equal(output(answer), whole)


def test_what_fits_no_device_is_told_so(stub: Stub, plane: DataPlane, fake: FakeTriton) -> None:
    fake.behaviour = arena(TEXTS["cuda"], 0)
    error = infer_error(stub, infer_request(rows(1.0)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(error).reason == "DEVICE_MEMORY"
    assert len(fake.requests) == 3
    assert plane.counters()["outcomes"]["failed", "device_memory"] == 1


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_are_passed_on(text: str, stub: Stub, fake: FakeTriton) -> None:
    fake.behaviour = arena(text, 0)
    error = infer_error(stub, infer_request(rows(1.0)))
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, text)


def test_what_a_client_may_have_written_is_not_believed(stub: Stub, fake: FakeTriton) -> None:
    def behaviour(request: Request, context: grpc.ServicerContext) -> Response:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"bad prompt: {TEXTS['cuda']}")

    fake.behaviour = behaviour
    error = infer_error(stub, infer_request(rows(1.0)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(fake.requests) == 1
