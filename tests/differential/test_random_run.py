"""The differential run itself, without servers: it repeats itself, finds, and makes small."""

from __future__ import annotations

from collections.abc import Sequence

from tests.codec_messages import Request
from tests.differential.cases import CHUNK, random_case
from tests.differential.deliberate import Difference, reason_for
from tests.differential.random_run import Comparison, Report
from tests.differential.ways import PLAIN, Answer, Ways
from tests.differential.worlds import random_models


class FakeWay:
    """Answers OK, but fails requests that have a parameter `flaw` names."""

    def __init__(self, flaw: str = "") -> None:
        self.flaw = flaw

    def answers(self, messages: Sequence[bytes], carrier: str = PLAIN) -> list[Answer]:
        return [self.answer(message) for message in messages]

    def answer(self, message: bytes) -> Answer:
        try:
            parameters = Request.FromString(message).parameters
        except Exception:  # what cannot be decoded
            return Answer("INTERNAL", "Unable to parse request")
        return Answer("INTERNAL", "flaw") if self.flaw in parameters else Answer("OK")


class FakeWays(Ways):
    def executions(self) -> list[int]:
        return [0]


def compared(flaw: str) -> Report:
    report = Report(3)
    ways = FakeWays(FakeWay(), FakeWay(flaw))  # type: ignore[arg-type]
    models = random_models("3/0", 4)
    cases = [random_case(3, number, models) for number in range(CHUNK)]
    Comparison(ways, report, lambda _: None).run_chunk(cases)
    return report


def test_a_case_follows_from_its_seed_and_number() -> None:
    first, second = (
        [random_case(7, number, random_models("7/0", 3)) for number in (900, 4, 900)]
        for _ in range(2)
    )
    assert first == second
    assert first[0] == first[2] != first[1]
    assert random_case(8, 900, random_models("7/0", 3)) != first[0]


def test_equal_answers_are_no_difference() -> None:
    report = compared("no request has it")
    assert report.requests == CHUNK
    assert report.unlisted == []


def test_a_difference_is_found_and_made_small() -> None:
    report = compared("priority")
    assert report.unlisted
    for difference in report.unlisted:
        assert difference.alone
        case = difference.found.case
        assert str(case.number) in difference.report(3)
        if case.request is not None:
            smallest = Request.FromString(difference.smallest)
            assert list(smallest.parameters) == ["priority"]
            assert not smallest.inputs
            assert not smallest.raw_input_contents


def test_other_words_are_no_listed_difference() -> None:
    case = random_case(3, 0, random_models("3/0", 4))
    texts = ("[request id: 1] inference request batch-size must be <= 8 for 'm'", "no")
    for text in texts:
        found = Difference(case, Answer("INVALID_ARGUMENT", "other"), Answer("INTERNAL", text))
        assert reason_for(found, FakeWay().answers) == ""
