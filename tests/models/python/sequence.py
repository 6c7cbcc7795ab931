"""A running sum for each sequence, by its correlation id, a number or a text."""

import numpy as np
import triton_python_backend_utils as pb_utils


def control(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0]


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            correlation_id = request.correlation_id()
            values = pb_utils.get_input_tensor_by_name(request, "VALUE").as_numpy()
            before = 0 if control(request, "START") else self.totals.get(correlation_id, 0)
            total = before + int(values.sum())
            self.totals[correlation_id] = total
            if control(request, "END"):
                del self.totals[correlation_id]
            output = pb_utils.Tensor("SUM", np.full_like(values, total))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
