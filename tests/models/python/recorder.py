"""Tells each request which execution it ran in, after an optional stay.

SEEN INT32[3] of every row: the number of the execution since the load, the rows of the batch, the
row's place in the batch. A request with a NaN gets an error, alone. Parameter `execution_ms`: how
long an execution takes.
"""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        import json

        parameters = json.loads(args["model_config"])["parameters"]
        self.execution_s = float(parameters["execution_ms"]["string_value"]) / 1000
        self.executions = 0

    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        rows = sum(len(value) for value in values)
        time.sleep(self.execution_s)
        responses = []
        place = 0
        for value in values:
            seen = np.empty((len(value), 3), dtype=np.int32)
            seen[:, 0] = self.executions
            seen[:, 1] = rows
            seen[:, 2] = np.arange(place, place + len(value))
            place += len(value)
            if np.isnan(value).any():
                error = pb_utils.TritonError("a value is not a number")
                responses.append(pb_utils.InferenceResponse(error=error))
            else:
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", seen)]))
        self.executions += 1
        return responses
