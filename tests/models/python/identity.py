"""Output i is input i, in the order of the configuration."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        inputs = [tensor["name"] for tensor in config["input"]]
        outputs = [tensor["name"] for tensor in config["output"]]
        self.pairs = list(zip(inputs, outputs, strict=True))

    def execute(self, requests):
        responses = []
        for request in requests:
            echoed = []
            for input_name, output_name in self.pairs:
                values = pb_utils.get_input_tensor_by_name(request, input_name).as_numpy()
                echoed.append(pb_utils.Tensor(output_name, values))
            responses.append(pb_utils.InferenceResponse(echoed))
        return responses
