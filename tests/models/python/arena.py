"""An identity that takes device memory as a framework's allocator does, from the figures of
tests/nvml/figures.py, so that NVML shows it.

An execution of n rows needs base_bytes + n * (bytes_per_row + bytes_per_element * elements of a
row), in whole 2 MiB. Every instance is a process with an arena of its own that keeps its largest
need; what it grows by comes from what is free on the device, and where that is not enough the
execution fails with the words of the framework. PyTorch gives back what it has cached before it
fails; the others keep it. Weights are taken at the load, all is given back at the unload.
"""

import json
import math
import os
import sys
import time

import triton_python_backend_utils as pb_utils

BLOCK_BYTES = 2 * 2**20


class OutOfMemoryError(RuntimeError):
    """By its name a part of what Triton answers."""


def mib(size):
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def pytorch(size, device, mine):
    raise OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate {mib(size)}. GPU 0 has a total capacity of "
        f"{mib(device.total_bytes)} of which {mib(device.free_bytes)} is free. Including "
        f"non-PyTorch memory, this process has {mib(mine)} memory in use. Of the allocated memory "
        f"{mib(mine)} is allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated."
    )


def onnxruntime(size, device, mine):
    return (
        "onnx runtime error 6: Non-zero status code returned while running Conv node. "
        "Name:'Conv_0' Status Message: /onnxruntime/core/framework/bfc_arena.cc:376 void* "
        "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
        "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size "
        f"{size}"
    )


def tensorrt(size, device, mine):
    return (
        "[executionContext.cpp::ExecutionContext::649] Error Code 2: OutOfMemory (Requested size "
        f"was {size} bytes.)"
    )


def cuda(size, device, mine):
    return "CUDA error: out of memory"


FRAMEWORKS = {f.__name__: f for f in (pytorch, onnxruntime, tensorrt, cuda)}


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        sys.path.insert(0, folder)
        from figures import Figures

        parameters = json.loads(args["model_config"])["parameters"]
        told = {name: value["string_value"] for name, value in parameters.items()}
        self.figures = Figures(told["figures"])
        self.place = int(told["device"])
        self.base_bytes = int(told["base_bytes"])
        self.bytes_per_row = int(told["bytes_per_row"])
        self.bytes_per_element = int(told["bytes_per_element"])
        self.weights_bytes = int(told["weights_bytes"])
        self.per_execution_s = float(told["per_execution_s"])
        self.per_row_s = float(told["per_row_s"])
        self.framework = told["framework"]
        self.arena_bytes = 0
        self.held_bytes = 0
        self.pid = os.getpid()
        with self.figures.locked():
            self.figures.forget_dead(self.place)
        problem = self.hold(self.weights_bytes)
        if problem is not None:
            raise OutOfMemoryError(problem)

    def hold(self, size):
        """Has `size` bytes from now on; or says why not."""
        with self.figures.locked():
            device = self.figures.devices[self.place]
            grown = size - self.held_bytes
            if grown <= device.free_bytes:
                self.figures.set_process(self.place, self.pid, size)
                self.held_bytes = size
                return None
            held = self.held_bytes
            if self.framework == "pytorch" and self.arena_bytes:
                self.arena_bytes = 0
                self.held_bytes = self.weights_bytes
                self.figures.set_process(self.place, self.pid, self.held_bytes)
            return FRAMEWORKS[self.framework](grown, device, held)

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        rows = sum(len(values) for values in inputs)
        elements = sum(values.size for values in inputs)
        need = self.base_bytes + rows * self.bytes_per_row + elements * self.bytes_per_element
        need = math.ceil(need / BLOCK_BYTES) * BLOCK_BYTES
        if need > self.arena_bytes:
            problem = self.hold(self.weights_bytes + need)
            if problem is not None:
                error = pb_utils.TritonError(problem)
                return [pb_utils.InferenceResponse(error=error) for _ in requests]
            self.arena_bytes = need
        time.sleep(self.per_execution_s + rows * self.per_row_s)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]) for values in inputs
        ]

    def finalize(self):
        with self.figures.locked():
            self.figures.set_process(self.place, self.pid, 0)
