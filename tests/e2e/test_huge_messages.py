"""Messages up to gRPC's own limit, straight and through the scheduler: the same answers.

A message of 2,000 MiB takes a minute and ten times its memory, so a small one is sent unless
INFERSCHED_HUGE_MESSAGE_MIB says otherwise; 2,047 is just below the limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.serving import ServedScheduler
from tests.wire.calls import connected, infer_request, rows

MESSAGE_MIB = int(os.environ.get("INFERSCHED_HUGE_MESSAGE_MIB", "48"))
TIMEOUT_S = 600.0


@pytest.fixture(scope="module")
def served(
    needs_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Addresses of a Triton and of a scheduler before it."""
    repository = tmp_path_factory.mktemp("huge")
    models.checksum(Path(repository))
    with (
        EmbeddedTriton(repository) as triton,
        ServedScheduler(["--backend", triton.grpc_address]) as scheduler,
    ):
        yield triton.grpc_address, scheduler.address


def test_a_huge_message_gets_its_answer(served: tuple[str, str]) -> None:
    width = (MESSAGE_MIB << 20) // 4
    values = np.random.default_rng(1).random((1, width), dtype=np.float32)
    expected = values.view(np.uint32).sum(dtype=np.uint32)
    request = infer_request(values, model="checksum")
    for address in served:
        with connected(address) as stub:
            response = stub.ModelInfer(request, timeout=TIMEOUT_S)
            (checksum,) = np.frombuffer(response.raw_output_contents[0], np.uint32)
            assert checksum == expected
            # Nothing is the worse for it.
            small = infer_request(rows(1), model="checksum")
            assert stub.ModelInfer(small, timeout=TIMEOUT_S).outputs[0].name == "CHECKSUM"
