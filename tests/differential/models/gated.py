"""Answers COUNT with the number of executions before it, once the file GATE exists.

Every execution adds a line to the file BEGUN first.
"""

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.begun = parameters["begun"]["string_value"]
        self.gate = parameters["gate"]["string_value"]
        self.executions = 0

    def execute(self, requests):
        for request in requests:
            with open(self.begun, "a") as begun:
                begun.write("begun\n")
            while not os.path.exists(self.gate):
                time.sleep(0.005)
            index = np.full((1, 1), self.executions, np.int32)
            self.executions += 1
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("INDEX", index)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
