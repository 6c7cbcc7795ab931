"""Computes rows one by one, as the configuration's parameter `plan` says.

Each output echoes an input or is a digest: one INT64 a row, of all inputs that a request has and of
its own parameters. A row whose digest has the remainder `poison` modulo 251 fails the execution,
with the code `poison_code`.
"""

import json
import zlib

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.inputs = [(i["name"], i["data_type"]) for i in config["input"]]
        self.plan = json.loads(config["parameters"]["plan"]["string_value"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        digest = self.digest(request)
        poison = self.plan["poison"]
        if poison is not None and np.any(digest % 251 == poison):
            code = getattr(pb_utils.TritonError, self.plan["poison_code"])
            error = pb_utils.TritonError("a row is refused", code)
            return pb_utils.InferenceResponse(error=error)
        outputs = []
        for name, source in self.plan["outputs"]:
            if source is None:
                outputs.append(pb_utils.Tensor(name, digest if self.batched else digest[0]))
                continue
            tensor = pb_utils.get_input_tensor_by_name(request, source)
            if dict(self.inputs)[source] == "TYPE_BF16":
                outputs.append(pb_utils.Tensor.from_dlpack(name, tensor))
            else:
                outputs.append(pb_utils.Tensor(name, tensor.as_numpy()))
        return pb_utils.InferenceResponse(outputs)

    def digest(self, request):
        """INT64 [rows, 1]."""
        texts = zlib.crc32(self.parameters(request))
        total = None
        for number, (name, datatype) in enumerate(self.inputs):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None or datatype == "TYPE_BF16":
                continue
            rows = row_sums(tensor.as_numpy(), self.batched) * (number + 1)
            total = rows if total is None else total + rows
        if total is None:
            total = np.zeros(self.first_dimension(request), np.int64)
        return (total + texts).reshape(-1, 1)

    def first_dimension(self, request):
        shape = request.inputs()[0].shape()
        return shape[0] if self.batched and shape else 1

    @staticmethod
    def parameters(request):
        found = json.loads(request.parameters() or "{}")
        return json.dumps(found, sort_keys=True).encode()


def row_sums(values, batched):
    """One INT64 a row that depends on all of its elements and their places."""
    if not batched:
        values = values[np.newaxis]
    count = values.shape[0]
    if values.dtype == np.object_:
        sums = [zlib.crc32(b"\0".join(row)) for row in values.reshape(count, -1)]
        return np.array(sums, np.int64)
    if values.size == 0:
        return np.zeros(count, np.int64)
    raw = np.ascontiguousarray(values).reshape(count, -1).view(np.uint8).astype(np.int64)
    return (raw * (np.arange(raw.shape[1]) * 37 + 11)).sum(axis=1)
