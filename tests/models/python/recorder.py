"""Tells each request which execution it ran in, after an optional stay.

SEEN INT32[3] of every row: the number of the execution since the load, the rows of the batch, the
row's place in the batch. A request with a value below zero gets an error, alone: -1 the first of
ERRORS, -2 the second. Parameter `execution_ms`: how long an execution takes.
"""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

ERRORS = (
    ("INVALID_ARG", "a value is out of range"),
    ("INTERNAL", "a value is not known"),
    ("UNKNOWN", "something went wrong"),
    ("NOT_FOUND", "a value has no user"),
    ("UNAVAILABLE", "the index is away"),
    ("UNSUPPORTED", "a value is of no use"),
    ("ALREADY_EXISTS", "a value came twice"),
    ("CANCELLED", "a value was taken back"),
    # As Triton says it of other models.
    ("UNAVAILABLE", "Model 'other' is not ready"),
    ("NOT_FOUND", "first step: Request for unknown model: 'other' is not found"),
)


def error_of(number):
    code, text = ERRORS[number]
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))


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
            if value.size and value.min() < 0:
                error = error_of(int(-value.min()) - 1)
                responses.append(pb_utils.InferenceResponse(error=error))
            else:
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SEEN", seen)]))
        self.executions += 1
        return responses
