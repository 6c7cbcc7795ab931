"""An identity that fails all it was given if one number is negative."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        if any((values < 0).any() for values in inputs):
            raise ValueError("a row has a negative number")
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]) for values in inputs
        ]
