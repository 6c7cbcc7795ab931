"""The differences from Triton that are meant, each with its reason and how to know it.

A difference that no entry allows is a bug. The texts stand in the README under "Where it differs
from Triton on purpose"; a test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.codec_messages import Request
from tests.differential.cases import Case
from tests.differential.ways import TOLD, Answer
from tests.differential.worlds import larger_name

Straight = Callable[[list[bytes]], list[Answer]]


@dataclass(frozen=True)
class Difference:
    """A case and its two answers; `straight` is None where Triton must not be asked."""

    case: Case
    straight: Answer | None
    through: Answer

    @property
    def request(self) -> Request | None:
        return self.case.request


@dataclass(frozen=True)
class Deliberate:
    """One difference that is meant. `allows` may ask Triton further questions."""

    name: str
    readme: str
    allows: Callable[[Difference, Straight], bool]
    # Texts of ours after which Triton is not asked: it would not survive or not answer.
    not_asked_after: str = ""


REFUSED = ("INVALID_ARGUMENT", TOLD)
TOO_MANY_ROWS = re.compile(r"\] inference request batch-size must be <= (\d+) for '(\w+)'$")
# What one request may be split into.
BATCHES_MAX = 1024
NO_CLASSES = "class result not available for output due to unsupported type '"
TYPES_WITHOUT_CLASSES = ("BOOL", "FP16", "BF16", "BYTES")


def _refused(answer: Answer | None, text: str) -> bool:
    return answer is not None and answer.code in REFUSED and text in answer.text


def _first_dimensions(request: Request) -> list[int]:
    return [entry.shape[0] for entry in request.inputs if entry.shape]


# -- rows beyond the largest batch ----------------------------------------------------------------


def _oversized(answer: Answer | None) -> str:
    """The model that has not the rows of a request, as Triton says; "" when that is not said."""
    if answer is None or answer.code not in REFUSED:
        return ""
    told = TOO_MANY_ROWS.search(answer.text)
    return told[2] if told is not None else ""


def _beyond_all_batches(found: Difference) -> bool:
    """Refused in Triton's words, with the rows of all the batches that it could be split into."""
    straight, through, request = found.straight, found.through, found.request
    told = TOO_MANY_ROWS.search(straight.text) if straight is not None else None
    if straight is None or told is None or through.code != straight.code:
        return False
    limit = BATCHES_MAX * int(told[1])
    ours = straight.text.replace(f"<= {told[1]} for", f"<= {limit} for")
    # What Python cannot read has no rows to look at.
    beyond = request is None or any(rows > limit for rows in _first_dimensions(request))
    return through.text == ours and beyond


def _of_larger(name: str, message: bytes, straight: Straight) -> Answer:
    """What Triton answers where the model's batches are larger, with the model's own name."""
    asked = larger_name(name)
    # The last name in a message counts.
    (answer,) = straight([message + Request(model_name=asked).SerializeToString()])
    response = answer.response
    if response.model_name == asked:
        response.model_name = name
    return Answer(answer.code, answer.text.replace(asked, name), response.SerializeToString())


def _split(found: Difference, straight: Straight) -> bool:
    name = _oversized(found.straight)
    if not name:
        return False
    if _beyond_all_batches(found):
        return True
    answer = _of_larger(name, found.case.message, straight)
    if _oversized(answer):
        return False
    # The row count may be one of several things in which the request differs.
    return (
        answer.equals(found.through) or reason_for(replace(found, straight=answer), straight) != ""
    )


# -- the others -----------------------------------------------------------------------------------


def _wide(found: Difference, _: Straight) -> bool:
    request = found.request
    if request is None or found.straight is not None:
        return False
    return any(d < 0 or d >= 2**31 for entry in request.inputs for d in entry.shape)


def _empty(found: Difference, _: Straight) -> bool:
    request = found.request
    if request is None or found.straight is not None:
        return False
    return any(dimension % 2**32 == 0 for dimension in _first_dimensions(request))


def _impossible_classes(found: Difference, _: Straight) -> bool:
    request, straight = found.request, found.straight
    if request is None or (straight is not None and straight.code == "OK"):
        return False
    wanted = {o.name for o in request.outputs if "classification" in o.parameters}
    types = {o.datatype for o in found.case.model.outputs if o.name in wanted}
    return any(
        _refused(found.through, f"{NO_CLASSES}{datatype}'")
        for datatype in types.intersection(TYPES_WITHOUT_CLASSES)
    )


PARAMETER_TEXT = re.compile(
    r"invalid value( type)? for '\w*'.*expected|invalid value type for .* parameter|"
    r"parameter keys starting with 'triton_' are reserved"
)


def _parameter_order(found: Difference, _: Straight) -> bool:
    """Triton names one of several wrong parameters: the first in the order of a hash map."""
    request, straight, through = found.request, found.straight, found.through
    if request is None or straight is None or len(request.parameters) < 2:
        return False
    if straight.code not in REFUSED or through.code != straight.code:
        return False
    return all(PARAMETER_TEXT.match(text) is not None for text in (straight.text, through.text))


def _cut_text(found: Difference, _: Straight) -> bool:
    straight, through = found.straight, found.through
    if straight is None or straight.code not in REFUSED or through.code != straight.code:
        return False
    return "\0" in through.text and straight.text == through.text.partition("\0")[0]


def _whole_budget(found: Difference, _: Straight) -> bool:
    through = found.through
    if through.text != "Request timeout expired":
        return False
    if through.code not in ("DEADLINE_EXCEEDED", TOLD):
        return False
    request = found.request
    return request is not None and 0 < request.parameters["timeout"].int64_param < 10_000_000


def _told_early(found: Difference, _: Straight) -> bool:
    straight, through = found.straight, found.through
    if straight is None or (straight.code, straight.text) != (through.code, through.text):
        return False
    return through.code == TOLD and through.text.startswith(
        ("incomplete string data for", "class result not available for")
    )


DELIBERATE = (
    Deliberate(
        "split",
        "A request with more rows than the model's largest batch is split and put together again.",
        _split,
    ),
    Deliberate(
        "wide",
        "Dimensions that are negative, or too large to address, are refused; Triton keeps the low "
        "32 bits of the first one and multiplies sizes without a check.",
        _wide,
        not_asked_after="] tensor sizes exceed what can be addressed",
    ),
    Deliberate(
        "empty",
        "A request of zero rows that has no data for one of its inputs is refused; Triton's python "
        "backend never answers it.",
        _empty,
        not_asked_after="] request of zero rows has no data for input",
    ),
    Deliberate(
        "impossible classes",
        "Class results (`classification`) of an output whose type has none, such as BYTES or FP16, "
        "are refused with Triton's words before they are sent: those of BYTES end a tritonserver "
        "2.51.",
        _impossible_classes,
        not_asked_after=f"{NO_CLASSES}BYTES'",
    ),
    Deliberate(
        "told early",
        "On a stream, the errors that the scheduler finds where Triton's backend would (a last "
        "string cut short, impossible class results) bring the id only, not model, version and "
        "final flag.",
        _told_early,
    ),
    Deliberate(
        "parameter order",
        "Of several wrong parameters, and of more than 256 inputs, another one may be named in the "
        "text.",
        _parameter_order,
    ),
    Deliberate(
        "cut text",
        "Where an error text quotes a name of the request that has a NUL byte, Triton's may end "
        "there.",
        _cut_text,
    ),
    Deliberate(
        "whole budget",
        "A request's `timeout` parameter is a budget for the whole request, not for queueing only.",
        _whole_budget,
    ),
)


def may_be_asked(through: Answer) -> bool:
    """Whether Triton answers, and survives, the request that we answered so."""
    return not any(
        entry.not_asked_after and _refused(through, entry.not_asked_after) for entry in DELIBERATE
    )


def reason_for(found: Difference, straight: Straight) -> str:
    """The name of the entry that allows the difference; "" when none does."""
    for entry in DELIBERATE:
        unasked = bool(entry.not_asked_after) and _refused(found.through, entry.not_asked_after)
        if (found.straight is not None or unasked) and entry.allows(found, straight):
            return entry.name
    return ""
