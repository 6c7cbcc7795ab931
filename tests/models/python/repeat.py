"""COUNT responses, one every DELAY_MS, and an error in place of number FAIL_AT.

Cancelled requests end early. What became of each request is a line of the file JOURNAL: its id,
its outcome and the number of responses sent.
"""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def scalar(request, name, default):
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else int(tensor.as_numpy().reshape(-1)[0])


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.journal = parameters["journal"]["string_value"]

    def execute(self, requests):
        for request in requests:
            outcome, sent = self.repeat(request)
            with open(self.journal, "a") as journal:
                journal.write(f"{request.request_id()} {outcome} {sent}\n")

    def repeat(self, request):
        sender = request.get_response_sender()
        count = scalar(request, "COUNT", 0)
        fail_at = scalar(request, "FAIL_AT", -1)
        delay_s = scalar(request, "DELAY_MS", 0) / 1000
        payload = np.zeros((1, scalar(request, "SIZE", 1)), np.uint8)
        for index in range(count):
            if request.is_cancelled():
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                return "cancelled", index
            if delay_s > 0:
                time.sleep(delay_s)
            sender.send(self.response(index, payload, failed=index == fail_at))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return "done", count

    def response(self, index, payload, failed):
        if failed:
            error = pb_utils.TritonError(f"response {index} fails")
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("INDEX", np.full((1, 1), index, np.int32)),
                pb_utils.Tensor("PAYLOAD", payload),
            ]
        )
