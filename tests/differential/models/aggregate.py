"""TOTAL: the sum over the rows of the request, one row whatever the batch."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "A").as_numpy()
            total = pb_utils.Tensor("TOTAL", values.sum(axis=0, keepdims=True))
            responses.append(pb_utils.InferenceResponse([total]))
        return responses
