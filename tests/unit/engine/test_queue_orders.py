"""QueueOrder of csrc/engine against std::set, under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cc_program import build_program, run_program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("orders")
    sources = ("engine/queues/queue_order.cc",)
    return build_program(directory, "engine/queue_orders", sources, sanitize="address,undefined")


@pytest.mark.parametrize("seed", range(5))
def test_an_order_agrees_with_a_set(program: Path, seed: int) -> None:
    run_program(program, seed)
