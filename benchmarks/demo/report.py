"""What the demo prints about each way to the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import tritonclient.grpc
from rich.console import Console
from rich.table import Table

from benchmarks.demo.classifier import TestSet
from benchmarks.demo.clients import Answers


@dataclass(frozen=True)
class Outcome:
    """One way's answers and the batches (rows -> executions) Triton ran for them."""

    way: str
    answers: Answers
    batches: Counter[int]

    def accuracy(self, test_set: TestSet) -> float:
        """The part of the answered requests that named the right digit."""
        if not self.answers.digit:
            return 0.0
        right = sum(
            int(test_set.digits[image]) == digit
            for image, digit in zip(self.answers.image, self.answers.digit, strict=True)
        )
        return right / len(self.answers.digit)

    @property
    def rows(self) -> int:
        return sum(rows * executions for rows, executions in self.batches.items())

    @property
    def mean_batch(self) -> float:
        return self.rows / max(self.batches.total(), 1)


def batch_sizes(triton_address: str, model: str) -> Counter[int]:
    """Executions of each batch size since Triton started, from ModelStatistics."""
    with tritonclient.grpc.InferenceServerClient(triton_address) as client:
        statistics = client.get_inference_statistics(model)
    return Counter(
        {
            batch.batch_size: batch.compute_infer.count
            for model_statistics in statistics.model_stats
            for batch in model_statistics.batch_stats
        }
    )


def print_table(console: Console, outcomes: list[Outcome], test_set: TestSet) -> None:
    """Accuracy, rate, latency and batch sizes, one column for each way."""
    table = Table(title=f"{len(test_set.images)} unseen handwritten digits, one a request")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(outcome.way, justify="right")
    rows = {
        "accuracy": [f"{o.accuracy(test_set):.2%}" for o in outcomes],
        "answered": [f"{len(o.answers.digit):,}" for o in outcomes],
        "failed": [f"{len(o.answers.errors):,}" for o in outcomes],
        "requests/s": [f"{o.answers.requests_per_s:,.0f}" for o in outcomes],
        "p50 latency": [f"{o.answers.latency_ms(50):.1f} ms" for o in outcomes],
        "p99 latency": [f"{o.answers.latency_ms(99):.1f} ms" for o in outcomes],
        "executions": [f"{o.batches.total():,}" for o in outcomes],
        "batch rows, mean": [f"{o.mean_batch:.1f}" for o in outcomes],
        "batch rows, max": [str(max(+o.batches, default=0)) for o in outcomes],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


def problems(outcomes: list[Outcome], test_set: TestSet, requests: int) -> list[str]:
    """Why the demo has failed; empty when it has not."""
    found = []
    for outcome in outcomes:
        if outcome.answers.errors:
            count = len(outcome.answers.errors)
            found.append(f"{outcome.way}: {count} errors, first: {outcome.answers.errors[0]}")
        if outcome.rows != requests:
            found.append(f"{outcome.way}: Triton ran {outcome.rows} rows for {requests} requests")
    if len({outcome.accuracy(test_set) for outcome in outcomes}) > 1:
        found.append("the ways differ in accuracy")
    return found
