"""Accepts every request it is given: X FP32 and Y BYTES of one element per row."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.batched = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests):
        responses = []
        for request in requests:
            # Reading every input makes the backend look at every string.
            shapes = [tensor.shape() for tensor in request.inputs()]
            # Triton hands on a request of zero rows without its batch dimension.
            rows = max(shapes[0][0], 1) if self.batched and shapes and shapes[0] else 1
            x = pb_utils.Tensor("X", np.zeros((rows, 1) if self.batched else (1,), np.float32))
            y = pb_utils.Tensor("Y", np.full((rows, 1) if self.batched else (1,), b"y", np.object_))
            responses.append(pb_utils.InferenceResponse([x, y]))
        return responses
