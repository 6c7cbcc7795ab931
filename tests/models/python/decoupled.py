"""As many responses as the request's COUNT says."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()
            sender = request.get_response_sender()
            for index in range(int(count.max(initial=0))):
                output = pb_utils.Tensor("INDEX", np.full_like(count, index))
                sender.send(pb_utils.InferenceResponse([output]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
