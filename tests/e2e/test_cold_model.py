"""A model that a real Triton has only just loaded: the first execution of an instance is slow."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import grpc
from tritonclient.grpc import InferenceServerClient

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.waiting import wait_until
from tests.wire.calls import connected, infer_request, rows

INSTANCES = 3
# Twice the objective, and a hundred times what a batch takes later on.
FIRST_S, LATER_S = 0.6, 0.005
SLO_MS = 300
# Of the capacity that is a tenth at most. A request is no sooner asked than the last was answered.
CLIENTS, PAUSE_S = 4, 0.05
RECENT, GOOD = 100, 95
CALL_TIMEOUT_S = 60.0
# All first executions one after the other, the requests that show that they are over, and as long
# again several times: a scheduler that goes on refusing does so without end.
SOON_S = 30.0


class Clients:
    """They ask on whatever they are told; `ends` has the outcomes in order."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]
        self.ends: list[str] = []

    def _ask(self, number: int) -> None:
        with connected(self._address) as stub:
            request = infer_request(rows(number), model="cold")
            while not self._stop.wait(PAUSE_S):
                try:
                    stub.ModelInfer(request, timeout=CALL_TIMEOUT_S)
                except grpc.RpcError as error:
                    self.ends.append(f"{error.code().name}: {error.details()}")
                else:
                    self.ends.append("OK")

    def good(self, since: int = 0) -> bool:
        """Whether nearly all of the last RECENT requests after the first `since` were in time."""
        last = self.ends[since:][-RECENT:]
        return len(last) == RECENT and last.count("OK") >= GOOD

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_fresh_model_is_served_in_time_soon_after_its_slow_first_batches(
    needs_triton: None, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    models.write_model(
        repository,
        "cold",
        source="slow",
        inputs=[models.Tensor("INPUT0")],
        outputs=[models.Tensor("OUTPUT0")],
        max_batch_size=16,
        instances=INSTANCES,
        parameters={
            "first_execution_s": repr(FIRST_S),
            "per_execution_s": repr(LATER_S),
            "per_row_s": "0",
        },
    )
    config = tmp_path / "c.yaml"
    config.write_text(f"models: {{cold: {{slo: {SLO_MS}ms}}}}\n")
    with (
        EmbeddedTriton(repository, model_control_mode="explicit") as triton,
        ServedScheduler(["--backend", triton.grpc_address, "--config", str(config)]) as scheduler,
    ):
        with InferenceServerClient(scheduler.address) as client:
            client.load_model("cold", client_timeout=CALL_TIMEOUT_S)
        begun = time.monotonic()
        with Clients(scheduler.address) as clients:
            try:
                wait_until(clients.good, f"{GOOD} of {RECENT} requests in time", SOON_S)
                # Nor does it begin again.
                served = len(clients.ends)
                wait_until(lambda: clients.good(since=served), "as many of the next", SOON_S)
            finally:
                took_s = time.monotonic() - begun
                print(f"after {took_s:.1f} s: {Counter(clients.ends)}")
        assert Counter(clients.ends)["OK"] < len(clients.ends), "no first batch was slow"
