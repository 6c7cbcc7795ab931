"""What the listed differences let pass: a wrong answer beside one of them is a bug."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.codec_messages import Request, Response, Tensor
from tests.differential.cases import Case
from tests.differential.deliberate import Difference, Straight, reason_for
from tests.differential.ways import TOLD, Answer
from tests.differential.worlds import WorldModel, larger_name

MODEL = WorldModel(
    "m0",
    (Tensor("A", "INT8", (1,)),),
    (Tensor("X", "INT8", (1,)), Tensor("Y", "BYTES", (1,)), Tensor("W", "FP16", (1,))),
    max_batch_size=4,
)
TOO_MANY = Answer(
    "INVALID_ARGUMENT", "[request id: r] inference request batch-size must be <= 4 for 'm0'"
)
NO_CLASSES = "class result not available for output due to unsupported type '{}'"
EXPIRED = "Request timeout expired"


def case(rows: int = 9, classes_of: Sequence[str] = (), timeout_us: int | None = None) -> Case:
    request = Request(model_name="m0", id="r", raw_input_contents=[bytes(range(rows))])
    request.inputs.add(name="A", datatype="INT8", shape=[rows, 1])
    for name in classes_of:
        request.outputs.add(name=name).parameters["classification"].int64_param = 1
    if timeout_us is not None:
        request.parameters["timeout"].int64_param = timeout_us
    return Case(0, "valid", MODEL, request.SerializeToString())


def reply(model: str, rows: int = 9, first: int = 0) -> bytes:
    response = Response(model_name=model, id="r")
    response.outputs.add(name="X", datatype="INT8", shape=[rows, 1])
    response.raw_output_contents.append(bytes(range(first, first + rows)))
    return bytes(response.SerializeToString())


def larger_answers(answer: Answer) -> Straight:
    """Of a Triton that has the model with larger batches; it is asked for nothing else."""

    def straight(messages: list[bytes]) -> list[Answer]:
        (message,) = messages
        asked = Request.FromString(message)
        assert asked.model_name == larger_name("m0")
        asked.model_name = "m0"
        assert asked == case().request
        return [answer]

    return straight


def not_asked(messages: list[bytes]) -> list[Answer]:
    raise AssertionError("no further question belongs to this difference")


# -- rows beyond the largest batch -----------------------------------------------------------------


def split_reason(larger: Answer, through: Answer) -> str:
    return reason_for(Difference(case(), TOO_MANY, through), larger_answers(larger))


def test_the_answer_to_an_oversize_request_is_that_of_a_model_with_larger_batches() -> None:
    larger = Answer("OK", "", reply(larger_name("m0")))
    assert split_reason(larger, Answer("OK", "", reply("m0"))) == "split"
    for other in (reply("m0", rows=8), reply("m0", first=1), reply("m1")):
        assert split_reason(larger, Answer("OK", "", other)) == ""


def test_a_request_beyond_all_batches_is_refused_with_their_rows() -> None:
    def told(rows: int) -> Answer:
        return replace(TOO_MANY, text=TOO_MANY.text.replace("<= 4 ", f"<= {rows} "))

    larger = larger_answers(Answer("INVALID_ARGUMENT", "[request id: r] other"))
    beyond = case(rows=9)
    request = Request.FromString(beyond.message)
    request.inputs[0].shape[0] = 4 * 1024 + 1
    beyond = replace(beyond, message=request.SerializeToString())
    assert reason_for(Difference(beyond, TOO_MANY, told(4096)), not_asked) == "split"
    # Not with fewer rows, nor with another limit.
    assert reason_for(Difference(case(), TOO_MANY, told(4096)), larger) == ""
    with pytest.raises(AssertionError):
        reason_for(Difference(beyond, TOO_MANY, told(4095)), not_asked)


def test_an_oversize_request_that_only_triton_can_read_is_asked_as_it_was_sent() -> None:
    """Python's protobuf takes no field number of 30 bits; Triton's does."""
    unknown = bytes.fromhex("fdffffff2f") + b"\0\0\0\0"
    odd = replace(case(), message=case().message + unknown)
    asked: list[bytes] = []

    def straight(messages: list[bytes]) -> list[Answer]:
        asked.extend(messages)
        return [Answer("OK", "", reply(larger_name("m0")))]

    assert odd.request is None
    through = Answer("OK", "", reply("m0"))
    assert reason_for(Difference(odd, TOO_MANY, through), straight) == "split"
    named = b"\x0a" + bytes([len(larger_name("m0"))]) + larger_name("m0").encode()
    assert asked == [odd.message + named]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("INVALID_ARGUMENT", "[request id: r] unexpected shape for input 'A' for model 'm0'"),
        (TOLD, "[request id: r] unexpected shape for input 'A' for model 'm0'"),
        ("INTERNAL", "a row is refused"),
    ],
)
def test_an_oversize_request_is_refused_as_a_model_with_larger_batches_refuses_it(
    code: str, text: str
) -> None:
    refused = Answer(code, text.replace("m0", larger_name("m0")))
    assert split_reason(refused, Answer(code, text)) == "split"
    for other in (
        Answer(code, "complete nonsense"),
        Answer(code, ""),
        Answer("UNAVAILABLE", text),
        Answer("OK", "", reply("m0")),
    ):
        assert split_reason(refused, other) == ""


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", TOLD, "INTERNAL", "DEADLINE_EXCEEDED"])
def test_an_oversize_request_that_a_larger_model_answers_is_not_refused(code: str) -> None:
    larger = Answer("OK", "", reply(larger_name("m0")))
    assert split_reason(larger, Answer(code, "complete nonsense")) == ""
    assert split_reason(larger, Answer(code, "")) == ""


def test_an_oversize_request_may_differ_otherwise_as_listed() -> None:
    larger = Answer("INVALID_ARGUMENT", "[request id: r] unexpected inference input 'A")
    whole = Answer("INVALID_ARGUMENT", "[request id: r] unexpected inference input 'A\0B' for m")
    assert split_reason(larger, whole) == "split"
    assert split_reason(larger, replace(whole, text="[request id: r] other 'A\0B'")) == ""


def test_a_larger_model_that_has_not_the_rows_either_proves_nothing() -> None:
    for through in (Answer("OK", "", reply("m0")), Answer("INVALID_ARGUMENT", "nonsense")):
        assert split_reason(TOO_MANY, through) == ""


# -- class results of types without any ------------------------------------------------------------


def class_reason(datatype: str, straight: Answer | None, outputs: Sequence[str] = "XYW") -> str:
    through = Answer("INVALID_ARGUMENT", NO_CLASSES.format(datatype))
    return reason_for(Difference(case(2, classes_of=outputs), straight, through), not_asked)


def test_class_results_are_refused_of_types_without_any_only() -> None:
    failed = Answer("INTERNAL", "a row is refused")
    assert class_reason("BYTES", None) == "impossible classes"
    assert class_reason("FP16", failed) == "impossible classes"
    assert class_reason("INT8", failed) == ""
    # None that is asked for classes has the type.
    assert class_reason("BYTES", None, outputs="XW") == ""
    assert class_reason("FP16", failed, outputs="XY") == ""
    assert class_reason("FP16", failed, outputs=()) == ""


def test_class_results_that_triton_answers_are_not_refused() -> None:
    for datatype in ("INT8", "FP16"):
        assert class_reason(datatype, Answer("OK", "", reply("m0", 2))) == ""


# -- budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "timeout_us", "reason"),
    [
        ("DEADLINE_EXCEEDED", 5, "whole budget"),
        (TOLD, 5, "whole budget"),
        ("INTERNAL", 5, ""),
        ("INVALID_ARGUMENT", 5, ""),
        ("OK", 5, ""),
        ("DEADLINE_EXCEEDED", 0, ""),
        ("DEADLINE_EXCEEDED", 60_000_000, ""),
        ("DEADLINE_EXCEEDED", None, ""),
    ],
)
def test_a_budget_that_is_over_is_told_as_such(
    code: str, timeout_us: int | None, reason: str
) -> None:
    found = Difference(
        case(2, timeout_us=timeout_us), Answer("OK", "", reply("m0", 2)), Answer(code, EXPIRED)
    )
    assert reason_for(found, not_asked) == reason
