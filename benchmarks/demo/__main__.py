"""`make demo`: the same images through the scheduler and straight to Triton.

All columns are the same Triton and unmodified tritonclient: asked straight, asked straight with
its own dynamic batcher on, and through the scheduler. On a small machine the clients, in Python,
are what limits the rate: compare the columns, and see `make bench` for the scheduler's own limits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.demo import classifier, report
from benchmarks.demo.clients import Load, send
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests.serving import ServedScheduler


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="times each image is sent")
    parser.add_argument("--processes", type=int, default=4, help="client processes")
    parser.add_argument("--in-flight", type=int, default=256, help="requests at a time, of all")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    console = Console()
    console.print("training a classifier on half of the handwritten digits")
    network, test_set = classifier.train()
    with tempfile.TemporaryDirectory(prefix="infersched-demo-") as directory:
        repository = Path(directory)
        classifier.write_repository(repository, network, compare_batchers=True)
        console.print("starting Triton")
        with EmbeddedTriton(repository) as triton:
            console.print(f"starting the scheduler in front of {triton.grpc_address}")
            with ServedScheduler(["--backend", triton.grpc_address]) as scheduler:
                ways = [
                    ("Triton", triton.grpc_address, classifier.MODEL),
                    (
                        "Triton batching",
                        triton.grpc_address,
                        classifier.MODEL_WITH_TRITONS_BATCHER,
                    ),
                    ("infersched", scheduler.address, classifier.MODEL),
                ]
                outcomes = []
                for way, address, model in ways:
                    load = Load(
                        address=address,
                        model=model,
                        images=test_set.images,
                        rounds=options.rounds,
                        processes=options.processes,
                        in_flight=options.in_flight,
                    )
                    console.print(f"{load.requests:,} requests: {way}")
                    before = report.batch_sizes(triton.grpc_address, model)
                    answers = send(load)
                    batches = report.batch_sizes(triton.grpc_address, model)
                    batches.subtract(before)
                    outcomes.append(report.Outcome(way, answers, batches))
    report.print_table(console, outcomes, test_set)
    problems = report.problems(outcomes, test_set, load.requests)
    for problem in problems:
        console.print(f"[bold red]{problem}[/]")
    if not problems:
        console.print("every request was answered and the accuracy is equal each way")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
