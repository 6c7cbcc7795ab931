"""Tells each row which parameters its request had, and gives every other input back.

TOLD holds the parameters as JSON; E_<name> is the input <name>, where the request has it.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            told = json.dumps(json.loads(request.parameters()), sort_keys=True)
            outputs = []
            for tensor in sorted(request.inputs(), key=lambda tensor: tensor.name()):
                values = tensor.as_numpy()
                outputs.append(pb_utils.Tensor("E_" + tensor.name(), values))
            rows = np.full((values.shape[0], 1), told.encode(), np.object_)
            outputs.append(pb_utils.Tensor("TOLD", rows))
            wanted = set(request.requested_output_names())
            outputs = [output for output in outputs if output.name() in wanted]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
