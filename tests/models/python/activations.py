"""An identity whose activations are real: PyTorch tensors on a GPU, base_bytes and bytes_per_row.

The allocator is told to grow its segments: one that cannot keeps the blocks of all smaller batches
besides the one of the largest.
"""

import json
import os

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        told = {name: value["string_value"] for name, value in parameters.items()}
        self.device = torch.device("cuda", int(told["device"]))
        self.base_bytes = int(told["base_bytes"])
        self.bytes_per_row = int(told["bytes_per_row"])
        torch.zeros(1, device=self.device)  # the context is there from now on

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        rows = sum(len(values) for values in inputs)
        try:
            size = self.base_bytes + rows * self.bytes_per_row
            activations = torch.empty(size // 4, dtype=torch.float32, device=self.device)
            activations.fill_(1.0).mul_(2.0)
            torch.cuda.synchronize(self.device)
        except torch.cuda.OutOfMemoryError as error:
            answer = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=answer) for _ in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]) for values in inputs
        ]
