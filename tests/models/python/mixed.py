"""Echoes VALUES and LABEL and adds up each row of VALUES."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "VALUES").as_numpy()
            label = pb_utils.get_input_tensor_by_name(request, "LABEL").as_numpy()
            total = values.sum(axis=1, keepdims=True, dtype=np.float32)
            responses.append(
                pb_utils.InferenceResponse(
                    [
                        pb_utils.Tensor("VALUES_ECHO", values),
                        pb_utils.Tensor("LABEL_ECHO", label),
                        pb_utils.Tensor("SUM", total),
                    ]
                )
            )
        return responses
