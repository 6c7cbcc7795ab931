"""An identity whose execution takes a set time and a set time a row.

The first execution of an instance takes `first_execution_s` instead, where that is given, as where
a framework compiles or allocates then. With the parameter `lock`, the path of a file, executions of
all models that name it exclude each other, as those on one device do.
"""

import contextlib
import fcntl
import json
import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.per_execution_s = float(parameters["per_execution_s"]["string_value"])
        self.per_row_s = float(parameters["per_row_s"]["string_value"])
        first = parameters.get("first_execution_s", {}).get("string_value", "")
        # Every instance is a process with a first execution of its own.
        self.first_execution_s = float(first) if first else None
        path = parameters.get("lock", {}).get("string_value", "")
        # And has the file open by itself.
        self.lock = os.open(path, os.O_CREAT | os.O_RDWR) if path else None

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        rows = sum(len(values) for values in inputs)
        takes_s = self.per_execution_s + rows * self.per_row_s
        if self.first_execution_s is not None:
            takes_s, self.first_execution_s = self.first_execution_s, None
        with self.device():
            time.sleep(takes_s)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]) for values in inputs
        ]

    @contextlib.contextmanager
    def device(self):
        if self.lock is None:
            yield
            return
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
