"""Adds BIAS to INPUT0 where a request has one."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            bias = pb_utils.get_input_tensor_by_name(request, "BIAS")
            if bias is not None:
                values = values + bias.as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]))
        return responses
