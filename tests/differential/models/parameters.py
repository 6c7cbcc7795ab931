"""SEEN: of every row the parameters of its request as JSON, forwarded headers among them."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            rows = len(pb_utils.get_input_tensor_by_name(request, "A").as_numpy())
            text = json.dumps(json.loads(request.parameters() or "{}"), sort_keys=True)
            seen = np.array([[text.encode()]] * rows, np.object_)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", seen)]))
        return responses
