"""An identity whose execution takes a set time and a set time a row."""

import json
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.per_execution_s = float(parameters["per_execution_s"]["string_value"])
        self.per_row_s = float(parameters["per_row_s"]["string_value"])

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        rows = sum(len(values) for values in inputs)
        time.sleep(self.per_execution_s + rows * self.per_row_s)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]) for values in inputs
        ]
