"""Runs random requests both ways, compares the answers, and makes what differs small.

Requests of one chunk go through the scheduler all at once, so that it merges them, and straight to
Triton, which executes each by itself; as plain calls, compressed ones, or on one stream. A world
has models of its own; its seed and the number of a request say everything about the request.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.codec_messages import Request
from tests.differential.cases import CHUNK, Case, random_case
from tests.differential.deliberate import Difference, may_be_asked, reason_for
from tests.differential.ways import CARRIERS, PLAIN, STREAM, Answer, Ways, ways_of
from tests.differential.worlds import (
    DEFAULT_BATCHING,
    model_settings,
    random_models,
    world,
)

WORLD_CHUNKS = 20
MODELS = 8
SHRINK_STEPS_MAX = 200


@dataclass
class Unlisted:
    """A difference that no entry of the table allows."""

    found: Difference
    # Whether the request differs when it is sent alone; else only among those of its chunk.
    alone: bool
    smallest: bytes
    carrier: str
    # Of the run, in words of the command line.
    options: str

    def report(self, seed: int) -> str:
        case, found = self.found.case, self.found
        lines = [
            f"request {case.number} ({case.kind}, {case.model.name}, {self.carrier}) differs",
            f"again: python -m tests.differential --seed {seed} --only {case.number} "
            f"{self.options}",
            f"straight: {found.straight}",
            f"through:  {found.through}",
            f"model: {case.model}",
        ]
        if self.alone:
            lines.append(f"smallest: {self.smallest.hex()}")
            request = replace(case, message=self.smallest).request
            lines.append(f"which is: {str(request)[:3000]}")
        else:
            lines.append("only together with the others of its chunk")
            lines.append(f"request: {str(case.request)[:3000]}")
        return "\n  ".join(lines)


@dataclass
class Report:
    """What a run found."""

    seed: int
    options: str = ""
    requests: int = 0
    seconds: float = 0.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    deliberate: Counter[str] = field(default_factory=Counter)
    unlisted: list[Unlisted] = field(default_factory=list)
    # Executions for the good answers through the scheduler: as it merged, and if it had not.
    executions_by_backend: Counter[int] = field(default_factory=Counter)
    executions_unmerged: int = 0

    @property
    def executions(self) -> int:
        return self.executions_by_backend.total()

    def summary(self) -> str:
        outcomes = ", ".join(f"{k} {c}: {n}" for (k, c), n in sorted(self.outcomes.items()))
        deliberate = ", ".join(f"{name}: {n}" for name, n in sorted(self.deliberate.items()))
        return (
            f"seed {self.seed}: {self.requests} requests, "
            f"{self.requests / max(self.seconds, 1e-9):.0f} a second; {outcomes}\n"
            f"deliberate differences: {deliberate or 'none'}; unlisted: {len(self.unlisted)}\n"
            f"{self.executions} executions through the scheduler "
            f"(by backend {list(self.executions_by_backend.values())}), "
            f"{self.executions_unmerged} without merging"
        )


class Comparison:
    """Both ways of one world, and the report that grows by it."""

    def __init__(self, ways: Ways, report: Report, tell: Callable[[Unlisted], None]) -> None:
        self.ways = ways
        self.report = report
        self.tell = tell
        self.carrier = PLAIN

    def straight(self, messages: list[bytes]) -> list[Answer]:
        return self.ways.straight.answers(messages, self.carrier)

    def answers(self, cases: Sequence[Case]) -> list[tuple[Answer | None, Answer]]:
        """Straight (None: not asked) and through."""
        messages = [case.message for case in cases]
        before = self.ways.executions()
        through = self.ways.through.answers(messages, self.carrier)
        for number, count in enumerate(self.ways.executions()):
            self.report.executions_by_backend[number] += count - before[number]
        for case, answer in zip(cases, through, strict=True):
            if answer.code == "OK":
                self.report.executions_unmerged += case.batches
        asked = [i for i, answer in enumerate(through) if may_be_asked(answer)]
        straight = dict(zip(asked, self.straight([messages[i] for i in asked]), strict=True))
        return [(straight.get(i), answer) for i, answer in enumerate(through)]

    def unlisted(self, case: Case, straight: Answer | None, through: Answer) -> Difference | None:
        if straight is not None and straight.equals(through):
            return None
        found = Difference(case, straight, through)
        reason = reason_for(found, self.straight)
        if not reason:
            return found
        self.report.deliberate[reason] += 1
        return None

    def differs_alone(self, case: Case) -> bool:
        ((straight, through),) = self.answers([case])
        return self.unlisted(case, straight, through) is not None

    def run_chunk(self, cases: Sequence[Case]) -> None:
        report = self.report
        self.carrier = CARRIERS[cases[0].number // CHUNK % len(CARRIERS)]
        if self.carrier == STREAM:
            # What cannot be decoded ends a stream.
            cases = [case for case in cases if case.request is not None]
        answers = self.answers(cases)
        report.requests += len(cases)
        for case, (straight, through) in zip(cases, answers, strict=True):
            report.outcomes[case.kind, through.code] += 1
            found = self.unlisted(case, straight, through)
            if found is None:
                continue
            deliberate = report.deliberate.copy()
            alone = self.differs_alone(case)
            smallest = shrunk(case, self.differs_alone) if alone else case.message
            report.deliberate = deliberate
            unlisted = Unlisted(found, alone, smallest, self.carrier, report.options)
            report.unlisted.append(unlisted)
            self.tell(report.unlisted[-1])


def smaller(request: Request) -> Iterator[Request]:
    """The request with one thing less."""
    for name in ("id", "model_version"):
        if getattr(request, name):
            less = Request.FromString(request.SerializeToString())
            less.ClearField(name)
            yield less
    for key in request.parameters:
        less = Request.FromString(request.SerializeToString())
        del less.parameters[key]
        yield less
    for name in ("outputs", "inputs", "raw_input_contents"):
        for number in range(len(getattr(request, name))):
            less = Request.FromString(request.SerializeToString())
            del getattr(less, name)[number]
            yield less


def shrunk(case: Case, differs: Callable[[Case], bool]) -> bytes:
    """A smaller message that still differs, by taking away one thing after the other."""
    request = case.request
    if request is None or not differs(replace(case, message=request.SerializeToString())):
        return case.message
    steps = 0
    progress = True
    while progress:
        progress = False
        for less in smaller(request):
            steps += 1
            if steps > SHRINK_STEPS_MAX:
                return request.SerializeToString()
            if differs(replace(case, message=less.SerializeToString())):
                request, progress = less, True
                break
    return request.SerializeToString()


def run(
    seed: int,
    numbers: range,
    *,
    models: int = MODELS,
    batching: str = DEFAULT_BATCHING,
    backends: int = 1,
    say: Callable[[str], None] = lambda _: None,
    tell: Callable[[Unlisted], None] = lambda _: None,
) -> Report:
    """Compares the requests `numbers`, whose first one begins a chunk.

    `say` hears of the progress after each chunk, `tell` of each difference that is not meant.
    """
    options = f"--models {models} --batching {batching} --backends {backends}"
    report = Report(seed, options)
    begun = time.monotonic()
    step = WORLD_CHUNKS * CHUNK
    for number in range(numbers.start // step, -(-numbers.stop // step)):
        part = range(max(numbers.start, number * step), min(numbers.stop, (number + 1) * step))
        chosen = random_models(f"{seed}/{number}", models)
        settings = model_settings(batching, random.Random(f"{seed}/{number}/settings"), chosen)
        with (
            tempfile.TemporaryDirectory(prefix="infersched-differential-") as directory,
            world(Path(directory), chosen, settings, backends=backends) as servers,
            ways_of(servers, CHUNK) as ways,
        ):
            comparison = Comparison(ways, report, tell)
            for begin in range(part.start, part.stop, CHUNK):
                chunk = range(begin, min(begin + CHUNK, part.stop))
                cases = [random_case(seed, n, chosen) for n in chunk]
                comparison.run_chunk(cases)
                say(f"{report.requests} requests, {len(report.unlisted)} unlisted differences")
    report.seconds = time.monotonic() - begun
    return report
