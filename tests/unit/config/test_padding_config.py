"""Padding as it is configured, checked against a model, and told to the data plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.backends.catalog import TensorSpec
from scheduler.config import ConfigError, load_settings
from scheduler.config.padding import Padding
from scheduler.control.padding import apply_padding, element_bytes, padding_problems
from scheduler.v1 import dataplane_pb2 as pb

INPUTS = (
    TensorSpec("TOKENS", "INT64", (-1,)),
    TensorSpec("TABLE", "FP32", (4, -1)),
    TensorSpec("MASK", "INT32", (-1,)),
    TensorSpec("LENGTH", "INT8", (1,)),
    TensorSpec("WORDS", "BYTES", (-1,)),
    TensorSpec("RAGGED", "FP32", (-1,), ragged=True),
)
OUTPUTS = (TensorSpec("STATES", "FP32", (-1, 8)), TensorSpec("POOLED", "FP32", (8,)))


def loaded(tmp_path: Path, padding: str) -> Padding:
    file = tmp_path / "infersched.yaml"
    file.write_text(f"models: {{m: {{padding: {padding}}}}}\n")
    return load_settings(file, environment={}).settings.batching_for("m").padding


@pytest.mark.parametrize(
    ("padding", "text"),
    [
        ("{inputs: {T: {}}}", "models.m.padding.inputs.T.lengths"),
        ("{inputs: {T: {lengths: []}}}", "models.m.padding.inputs.T.lengths"),
        ("{inputs: {T: {lengths: [0]}}}", "models.m.padding.inputs.T.lengths"),
        ("{inputs: {T: {lengths: [a]}}}", "expected whole numbers"),
        ("{inputs: {T: {lengths: [8], axes: 1}}}", "unknown key; did you mean axis?"),
        ("{inputs: {T: {lengths: [8], mask: T}}}", "input T cannot describe itself"),
        ("{inputs: {T: {lengths: [8], mask: A, length: A}}}", "is the mask and the length of T"),
        (
            "{inputs: {T: {lengths: [8], mask: A}, A: {lengths: [9]}}}",
            "mask A has other lengths than T",
        ),
        ("{outputs: {E: {follows: T}}}", "output E follows T, which is none of the padded inputs"),
    ],
)
def test_mistakes_name_their_place_and_the_way_out(tmp_path: Path, padding: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, padding)

    assert text in str(raised.value)


def test_padding_needs_merging(tmp_path: Path) -> None:
    file = tmp_path / "infersched.yaml"
    file.write_text("models: {m: {merge: false, padding: {inputs: {T: {lengths: [4]}}}}}\n")

    with pytest.raises(ConfigError, match="padding needs merge: true"):
        load_settings(file, environment={})


@pytest.mark.parametrize(
    ("padding", "problem"),
    [
        ("{inputs: {T: {lengths: [8]}}}", "input T is none of the model's"),
        ("{inputs: {TOKENS: {lengths: [8], axis: 1}}}", "input TOKENS has no axis 1"),
        ("{inputs: {TABLE: {lengths: [8]}}}", "input TABLE has the fixed length 4 at axis 0"),
        ("{inputs: {RAGGED: {lengths: [8]}}}", "input RAGGED is a shape tensor or ragged"),
        ("{inputs: {TOKENS: {lengths: [8], value: 0.5}}}", "value 0.5 does not fit INT64"),
        ("{inputs: {TOKENS: {lengths: [8], value: x}}}", "value 'x' is no number"),
        ("{inputs: {WORDS: {lengths: [8], value: 1}}}", "value 1 is no text"),
        ("{inputs: {TOKENS: {lengths: [8], mask: M}}}", "mask M is none of the model's inputs"),
        ("{inputs: {TOKENS: {lengths: [8], mask: WORDS}}}", "mask WORDS is BYTES"),
        ("{inputs: {TOKENS: {lengths: [8], mask: TABLE}}}", "mask TABLE has dims [4, -1]"),
        ("{inputs: {TOKENS: {lengths: [128], length: LENGTH}}}", "too narrow for 128"),
        (
            "{inputs: {TOKENS: {lengths: [8]}}, outputs: {POOLED: {follows: TOKENS}}}",
            "output POOLED has the fixed length 8 at axis 0",
        ),
    ],
)
def test_padding_that_does_not_fit_the_model_says_why(
    tmp_path: Path, padding: str, problem: str
) -> None:
    (found,) = padding_problems(loaded(tmp_path, padding), INPUTS, OUTPUTS)

    assert problem in found


def test_padding_reaches_the_data_plane(tmp_path: Path) -> None:
    padding = loaded(
        tmp_path,
        "{inputs: {TOKENS: {lengths: [64, 32], value: -1, mask: MASK, length: LENGTH}, "
        "TABLE: {lengths: 16, axis: 1}}, outputs: {STATES: {follows: TOKENS}}}",
    )
    assert padding_problems(padding, INPUTS, OUTPUTS) == []
    model = pb.Model(
        inputs=[pb.Tensor(name=t.name, datatype=t.datatype) for t in INPUTS],
        outputs=[pb.Tensor(name=t.name, datatype=t.datatype) for t in OUTPUTS],
    )

    apply_padding(padding, model)

    tokens, table = model.inputs[0].padding, model.inputs[1].padding
    assert tokens == pb.Padding(
        buckets=[32, 64], value=b"\xff" * 8, mask_input="MASK", length_input="LENGTH"
    )
    assert table == pb.Padding(axis=1, buckets=[16], value=bytes(4))
    assert not model.inputs[2].HasField("padding")
    assert (model.outputs[0].trim_to, model.outputs[0].trim_axis) == ("TOKENS", 0)
    assert model.outputs[1].trim_to == ""


@pytest.mark.parametrize(
    ("datatype", "value", "raw"),
    [
        ("INT8", -128, b"\x80"),
        ("UINT16", 65535, b"\xff\xff"),
        ("INT32", 3.0, b"\x03\0\0\0"),
        ("BOOL", True, b"\x01"),
        ("FP16", 1, b"\x00\x3c"),
        ("BF16", 1.0, b"\x80\x3f"),
        ("BF16", float("nan"), b"\xc0\x7f"),
        ("FP32", float("-inf"), b"\0\0\x80\xff"),
        ("FP64", None, bytes(8)),
        ("BYTES", None, b""),
        ("BYTES", "é", "é".encode()),
    ],
)
def test_one_element_of_padding(datatype: str, value: float | str | None, raw: bytes) -> None:
    assert element_bytes(datatype, value) == raw


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT8", 128),
        ("UINT8", -1),
        ("BOOL", 2),
        ("FP16", 1e6),
        ("INT32", float("inf")),
        ("INT32", float("nan")),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype: str, value: float) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        element_bytes(datatype, value)
