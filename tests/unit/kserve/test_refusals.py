"""The codec refuses what Triton refuses, in Triton's words."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from scheduler._native import codec
from tests.codec_messages import Request, bytes_tensor
from tests.codec_vectors import (
    INVALID_ARGUMENT,
    ROW,
    prepare,
    refusal,
    vector_request,
    vector_schema,
)

pytestmark = pytest.mark.native


R = "[request id: 7] "


def wrong(change: Callable[[Request], None]) -> Request:
    request = vector_request(id="7")
    change(request)
    return request


def set_shape(*dims: int) -> Callable[[Request], None]:
    def change(request: Request) -> None:
        request.inputs[0].shape[:] = dims

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param(
            set_shape(1, 8),
            R + "unexpected shape for input 'I' for model 'm'. Expected [-1,4], got [1,8]. NOTE: ",
            id="shape",
        ),
        pytest.param(
            set_shape(1, -1),
            R + "All input dimensions should be specified for input 'I' for model 'm', got [1,-1]",
            id="wildcard",
        ),
        pytest.param(
            set_shape(),
            R + "input 'I' has no shape but model requires batch dimension for 'm'",
            id="no shape",
        ),
        pytest.param(
            lambda r: setattr(r.inputs[0], "datatype", "INT32"),
            R + "inference input 'I' data-type is 'INT32', but model 'm' expects 'FP32'",
            id="datatype",
        ),
        pytest.param(
            lambda r: r.raw_input_contents.__setitem__(0, b"123"),
            R + "input byte size mismatch for input 'I' for model 'm'. Expected 16, got 3",
            id="byte size",
        ),
        pytest.param(
            lambda r: r.raw_input_contents.pop(),
            "unable to find data for input tensor 'I' for model 'm' in request.",
            id="no data",
        ),
        pytest.param(
            lambda r: r.inputs[0].contents.fp32_contents.append(1),
            "contents field must not be specified when using raw_input_contents for 'I' for "
            "model 'm'",
            id="raw and typed",
        ),
        pytest.param(
            lambda r: r.inputs.pop(),
            R + "expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
            "required input(s) ['I']. Please provide all required input(s).",
            id="missing input",
        ),
        pytest.param(
            lambda r: setattr(r.inputs[0], "name", "X"),
            "unexpected inference input 'X' for model 'm'",
            id="unknown input",
        ),
        pytest.param(
            lambda r: r.outputs.add(name="X"),
            "unexpected inference output 'X' for model 'm'",
            id="unknown output",
        ),
        pytest.param(
            lambda r: r.inputs.append(r.inputs[0]),
            R + "input 'I' already exists in request",
            id="duplicate input",
        ),
        pytest.param(
            lambda r: setattr(r.parameters["priority"], "int64_param", -1),
            "invalid value for 'priority', expected value >= 0.",
            id="negative priority",
        ),
        pytest.param(
            lambda r: setattr(r.parameters["priority"], "string_param", "1"),
            "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
            id="priority as text",
        ),
        pytest.param(
            lambda r: setattr(r.parameters["timeout"], "uint64_param", 1),
            "invalid value type for 'timeout' parameter, expected int64_param.",
            id="timeout unsigned",
        ),
        pytest.param(
            set_shape(2**32 + 1, 4),
            R + "tensor sizes exceed what can be addressed",
            id="rows above 32 bits",
        ),
    ],
)
def test_refusals_use_tritons_words(change: Callable[[Request], None], text: str) -> None:
    code, answered = refusal(wrong(change))

    assert code == INVALID_ARGUMENT
    assert answered.startswith(text)


def test_batch_dimensions_must_agree() -> None:
    schema = vector_schema().add_input("J", "FP32", [4])
    request = vector_request(id="7")
    request.inputs.add(name="J", datatype="FP32", shape=[2, 4])
    request.raw_input_contents.append(ROW * 2)

    code, text = refusal(request, schema)

    assert code == INVALID_ARGUMENT
    # Triton meets its inputs in the order of a hash table.
    assert text.endswith("batch size does not match other inputs for 'm'")


def too_many_rows(limit: int = 8) -> tuple[int, str]:
    text = f"[request id: <id_unknown>] inference request batch-size must be <= {limit} for 'm'"
    return INVALID_ARGUMENT, text


def test_rows_are_limited_only_where_requests_are_not_split() -> None:
    assert prepare(vector_request(9)).rows == 9
    assert refusal(vector_request(9), vector_schema(rows_max=8)) == too_many_rows()
    assert refusal(vector_request(9), vector_schema(sequence=True)) == too_many_rows()


def test_the_rows_of_a_request_that_is_split_are_limited_too() -> None:
    schema = vector_schema(rows_max=16)
    assert prepare(vector_request(16), schema).rows == 16
    assert refusal(vector_request(17), schema) == too_many_rows(16)
    whole = vector_request(9)
    whole.parameters["sequence_id"].int64_param = 1
    assert refusal(whole, schema) == too_many_rows()


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_rows_without_data_are_not_split(datatype: str) -> None:
    """Sixty bytes would become millions of executions."""
    schema = codec.ModelSchema("m", max_batch_size=8, rows_max=16)
    schema.add_input("I", datatype, [-1])

    def request(rows: int) -> Request:
        message = Request(model_name="m", raw_input_contents=[b""])
        message.inputs.add(name="I", datatype=datatype, shape=[rows, 0])
        return message

    assert prepare(request(8), schema).rows == 8
    for rows in (9, 2**30):
        assert refusal(request(rows), schema) == too_many_rows()


def strings_request(raw: bytes) -> Request:
    request = Request(model_name="s", id="7", raw_input_contents=[raw])
    request.inputs.add(name="S", datatype="BYTES", shape=[1, 2])
    return request


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            bytes_tensor([b"a"]) + b"\1\0",
            R + "incomplete string length indicator for inference input 'S' for model 's', "
            "expecting 4 bytes but only 2 bytes available. Please make sure the string length "
            "indicator is in one buffer.",
        ),
        (
            bytes_tensor([b"a"]) + struct.pack("<I", 9) + b"ab",
            "incomplete string data for inference input 'S', expecting string of length 9 but "
            "only 2 bytes available",
        ),
        (
            bytes_tensor([b"a"]),
            R + "expected 2 string elements for inference input 'S' for model 's', got 1",
        ),
        (
            bytes_tensor([b"a", b"b", b"c"]),
            R + "unexpected number of string elements 3 for inference input 'S' for model 's', "
            "expecting 2",
        ),
    ],
)
def test_refusals_of_strings_use_tritons_words(raw: bytes, text: str) -> None:
    schema = codec.ModelSchema("s", max_batch_size=4).add_input("S", "BYTES", [2])

    assert refusal(strings_request(raw), schema) == (INVALID_ARGUMENT, text)


def test_class_results_of_strings_are_refused() -> None:
    """They end tritonserver 2.51 with a division by zero."""
    schema = codec.ModelSchema("m", max_batch_size=8).add_input("I", "FP32", [4])
    schema.add_output("T", "BYTES", [1])
    request = vector_request()
    request.outputs.add(name="T").parameters["classification"].int64_param = 2

    text = "class result not available for output due to unsupported type 'BYTES'"
    assert refusal(request, schema) == (INVALID_ARGUMENT, text)


def test_no_rows_and_no_data_are_refused() -> None:
    """Triton's python backend never answers such a request, whose slot would be lost."""
    schema = codec.ModelSchema("m", max_batch_size=8)
    schema.add_input("I", "FP32", [-1]).add_input("J", "FP32", [1])
    request = Request(model_name="m", id="7", raw_input_contents=[b"", bytes(4)])
    request.inputs.add(name="I", datatype="FP32", shape=[0, 0])
    request.inputs.add(name="J", datatype="FP32", shape=[0, 1])

    text = R + "request of zero rows has no data for input 'I' for model 'm'"
    assert refusal(request, schema) == (INVALID_ARGUMENT, text)


def test_texts_with_the_names_as_sent_end_at_a_nul() -> None:
    request = vector_request()
    request.model_name = "m\0odel"
    request.inputs[0].contents.SetInParent()
    text = "contents field must not be specified when using raw_input_contents for 'I' for model 'm"
    assert refusal(request) == (INVALID_ARGUMENT, text)

    del request.raw_input_contents[:]
    request.inputs[0].name = "I\0nput"
    request.inputs[0].ClearField("contents")
    text = "unable to find data for input tensor 'I"
    assert refusal(request) == (INVALID_ARGUMENT, text)


def test_what_goes_alone_cannot_be_split() -> None:
    """An output asked for twice with parameters; the codec finds that out while it checks."""
    request = vector_request(9)
    for _ in range(2):
        request.outputs.add(name="O").parameters["binary_data"].bool_param = True

    assert refusal(request, vector_schema(rows_max=0)) == too_many_rows()


def test_a_shape_that_goes_alone_has_no_more_rows_than_a_batch() -> None:
    """Another input has the data of many more."""
    schema = codec.ModelSchema("m", max_batch_size=8, rows_max=16)
    schema.add_input("I", "FP32", [-1, -1]).add_input("J", "INT8", [1])

    def request(rows: int) -> Request:
        message = Request(model_name="m", raw_input_contents=[b"", bytes(rows)])
        message.inputs.add(name="I", datatype="FP32", shape=[rows, 0, 2**34])
        message.inputs.add(name="J", datatype="INT8", shape=[rows, 1])
        return message

    assert prepare(request(8), schema).rows == 8
    assert refusal(request(9), schema) == too_many_rows()


def test_a_shape_that_cannot_be_addressed_is_refused_though_it_is_empty() -> None:
    """It ends the process of a python model of Triton's."""
    schema = codec.ModelSchema("m", max_batch_size=8).add_input("I", "FP32", [-1, -1])
    request = Request(model_name="m", id="7", raw_input_contents=[b""])
    request.inputs.add(name="I", datatype="FP32", shape=[1, 0, 2**63 - 1])

    text = R + "tensor sizes exceed what can be addressed"
    assert refusal(request, schema) == (INVALID_ARGUMENT, text)


def test_what_precedes_a_region_is_judged() -> None:
    schema = codec.ModelSchema("m", max_batch_size=8)
    schema.add_input("I", "FP32", [4]).add_input("J", "FP32", [4])
    request = vector_request()
    request.raw_input_contents[:] = []
    request.inputs.add(name="J", datatype="FP32", shape=[1, 4])
    request.inputs[1].parameters["shared_memory_region"].string_param = "r"
    request.inputs[1].parameters["shared_memory_byte_size"].int64_param = 16

    text = "unable to find data for input tensor 'I' for model 'm' in request."
    assert refusal(request, schema) == (INVALID_ARGUMENT, text)


@pytest.mark.parametrize("max_batch_size", [0, 8])
def test_a_negative_dimension_is_not_excused_by_an_input_without_rows(max_batch_size: int) -> None:
    schema = codec.ModelSchema("m", max_batch_size=max_batch_size)
    dims = [-1] if max_batch_size else [-1, -1]
    schema.add_input("I", "FP32", dims).add_input("J", "FP32", dims)
    request = Request(model_name="m", id="7", raw_input_contents=[b"", b""])
    request.inputs.add(name="I", datatype="FP32", shape=[0, 4])
    request.inputs.add(name="J", datatype="FP32", shape=[0, -(2**63)])

    code, text = refusal(request, schema)

    assert code == INVALID_ARGUMENT
    assert text.startswith(R)
