"""Padding: inputs of different lengths made equal, so that their requests share a batch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator

from scheduler.config.section import Section

LENGTH_MAX = 2**31 - 1
LENGTHS_MAX = 64


def _ascending_lengths(value: object) -> object:
    lengths = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in lengths):
        raise ValueError("expected whole numbers, as in [32, 64, 128]")
    return tuple(sorted(set(lengths)))


class InputPadding(Section):
    """One input whose variable dimension is filled up to one of some lengths."""

    lengths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=LENGTH_MAX)], ...],
        BeforeValidator(_ascending_lengths),
        Field(
            min_length=1,
            max_length=LENGTHS_MAX,
            description="a tensor gets the smallest of these that fits; a longer one keeps its own",
        ),
    ]
    axis: Annotated[int, Field(ge=0, le=63)] = Field(
        default=0, description="the dimension; 0 is the first after the batch dimension"
    )
    value: StrictBool | StrictInt | StrictFloat | str | None = Field(
        default=None, description="what is filled in; none is zero, or the empty string"
    )
    mask: str = Field(
        default="",
        description="an input of [rows, length] that is filled with 1 where the tensor has data "
        "and 0 where it is padding, unless the client sends it",
    )
    length: str = Field(
        default="",
        description="an input of [rows, 1] that is filled with the length before padding, unless "
        "the client sends it",
    )


class OutputPadding(Section):
    """One output that is as long as a padded input; answers have the length of their request."""

    follows: str = Field(description="the padded input")
    axis: Annotated[int, Field(ge=0, le=63)] = Field(
        default=0, description="the dimension; 0 is the first after the batch dimension"
    )


class Padding(Section):
    """What is padded of a model, by the names of its tensors."""

    inputs: dict[str, InputPadding] = Field(default={})
    outputs: dict[str, OutputPadding] = Field(default={})

    @model_validator(mode="after")
    def _followed(self) -> Padding:
        for name, output in self.outputs.items():
            if output.follows not in self.inputs:
                raise ValueError(
                    f"output {name} follows {output.follows}, which is none of the padded inputs "
                    f"{sorted(self.inputs)}"
                )
        return self

    @model_validator(mode="after")
    def _described_once(self) -> Padding:
        for name, padded in self.inputs.items():
            if name in (padded.mask, padded.length):
                raise ValueError(f"input {name} cannot describe itself")
            if padded.mask and padded.mask == padded.length:
                raise ValueError(f"input {padded.mask} is the mask and the length of {name}")
            mask = self.inputs.get(padded.mask)
            if mask is not None and mask.lengths != padded.lengths:
                raise ValueError(f"mask {padded.mask} has other lengths than {name}")
        return self
