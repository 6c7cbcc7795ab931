"""An identity that notes what happens to it: load, unload, begin and end of each execution.

One line an event, `name event monotonic_ns`, appended to the file of the parameter `notes`. While
there is a file NOTES.NAME.hold, its load waits; while there is one NOTES.NAME.fail, its load fails
with that file's text; while there is one NOTES.NAME.stay, its unload waits.
"""

import json
import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        told = {name: value["string_value"] for name, value in parameters.items()}
        self.name, self.notes = args["model_name"], told["notes"]
        self.per_execution_s = float(told["per_execution_s"])
        self.note("loading")
        while os.path.exists(f"{self.notes}.{self.name}.hold"):
            time.sleep(0.01)
        if os.path.exists(f"{self.notes}.{self.name}.fail"):
            with open(f"{self.notes}.{self.name}.fail") as file:
                raise RuntimeError(file.read())
        self.note("load")

    def note(self, event):
        line = f"{self.name} {event} {time.monotonic_ns()}\n".encode()
        file = os.open(self.notes, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, line)
        os.close(file)

    def execute(self, requests):
        self.note("begin")
        inputs = [pb_utils.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        time.sleep(self.per_execution_s)
        self.note("end")
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]) for values in inputs
        ]

    def finalize(self):
        self.note("unloading")
        while os.path.exists(f"{self.notes}.{self.name}.stay"):
            time.sleep(0.01)
        self.note("unload")
