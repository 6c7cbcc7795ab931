"""Lookahead of csrc/engine alone, under the sanitizers."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cc_program import CSRC, build_program, run_program

OTHERS = (
    "admission/held_batches",
    "admission/lookahead",
    "batching/batch_former",
    "batching/rates",
    "queues/priorities",
    "triton/queue",
)


def test_executors_that_are_never_free_are_no_moment_at_which_a_request_comes(
    tmp_path: Path,
) -> None:
    engine = CSRC / "engine"
    # How backends share what is learned is a part of the whole engine.
    latencies = set(engine.glob("latency/*.cc")) - {engine / "latency" / "sharing.cc"}
    files = [*sorted(latencies), *(engine / f"{name}.cc" for name in OTHERS)]
    sources = tuple(str(path.relative_to(CSRC)) for path in files)
    program = build_program(tmp_path, "engine/lookaheads", sources, sanitize="address,undefined")
    run_program(program, 0)
