"""One request for each error that Triton has a text for, and the words that tell it is that one."""

from __future__ import annotations

from collections.abc import Callable

from tests.codec_messages import Request, bytes_tensor

Change = Callable[[Request], object]

ROW = bytes(64)


def pair_request() -> Request:
    """A valid request of `pair`: A FP32[16] and B INT32[-1, 2], at most 8 rows."""
    request = Request(model_name="pair", id="it")
    request.inputs.add(name="A", datatype="FP32", shape=[1, 16])
    request.inputs.add(name="B", datatype="INT32", shape=[1, 2, 2])
    request.raw_input_contents.extend([ROW, bytes(16)])
    return request


def text_request() -> Request:
    """A valid request of `text`: S BYTES[2]."""
    request = Request(model_name="text", id="it", raw_input_contents=[bytes_tensor([b"a", b"b"])])
    request.inputs.add(name="S", datatype="BYTES", shape=[1, 2])
    return request


def flag_request() -> Request:
    """A valid request of `choice`: A UINT8[1], B UINT8[1] optional."""
    request = Request(model_name="choice", id="it", raw_input_contents=[b"\7"])
    request.inputs.add(name="A", datatype="UINT8", shape=[1, 1])
    return request


def value_request(model: str) -> Request:
    """VALUE INT32[1]: of `sequence`; and COUNT of `decoupled`."""
    request = Request(model_name=model, id="it", raw_input_contents=[b"\1\0\0\0"])
    name = "VALUE" if model == "sequence" else "COUNT"
    request.inputs.add(name=name, datatype="INT32", shape=[1, 1])
    return request


def failing_request(model: str = "failing") -> Request:
    request = Request(model_name=model, id="it", raw_input_contents=[b"\0\0\x80\xbf" * 16])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    return request


def changed(request: Request, *changes: Change) -> Request:
    for change in changes:
        change(request)
    return request


def typed(number: int) -> Change:
    """No raw contents, and the first input's typed contents in one of the fields."""

    def change(request: Request) -> None:
        del request.raw_input_contents[:]
        for entry in request.inputs:
            entry.contents.fp32_contents.extend([0.0] * 16)
        contents = request.inputs[0].contents
        if number == 1:
            del contents.fp32_contents[:]
            contents.int_contents.extend([1] * 16)
        elif number == 2:
            contents.fp64_contents.extend([0.0] * 16)

    return change


def shape(*dims: int) -> Change:
    return lambda r: r.inputs[0].shape.__setitem__(slice(None), dims)


def raw(data: bytes) -> Change:
    return lambda r: r.raw_input_contents.__setitem__(0, data)


def parameter(key: str, kind: str, value: object) -> Change:
    return lambda r: setattr(r.parameters[key], f"{kind}_param", value)


def classes(kind: str, value: object, output: str = "X") -> Change:
    return lambda r: setattr(
        r.outputs.add(name=output).parameters["classification"], f"{kind}_param", value
    )


def region(tensor: str, key: str, kind: str, value: object) -> Change:
    def change(request: Request) -> None:
        if tensor == "input":
            entry = request.inputs[0]
        else:
            entry = request.outputs[0] if request.outputs else request.outputs.add(name="X")
        setattr(entry.parameters[f"shared_memory_{key}"], f"{kind}_param", value)

    return change


def without_data(request: Request) -> None:
    del request.raw_input_contents[:]


NOWHERE = region("input", "region", "string", "nowhere")
SIXTY_FOUR = region("input", "byte_size", "int64", 64)


def errors() -> dict[str, tuple[Request, str]]:
    """By name: the request, and a part of the text that Triton answers."""
    found: dict[str, tuple[Request, str]] = {}

    def pair(name: str, words: str, *changes: Change) -> None:
        found[name] = (changed(pair_request(), *changes), words)

    def text(name: str, words: str, data: bytes) -> None:
        found[name] = (changed(text_request(), raw(data)), words)

    pair("unknown model", "'nope' is not found", lambda r: setattr(r, "model_name", "nope"))
    pair("no model", "unknown model: '' is not found", lambda r: setattr(r, "model_name", ""))
    pair("unknown version", "version 7 is not", lambda r: setattr(r, "model_version", "7"))
    pair("version text", "(details: stol)", lambda r: setattr(r, "model_version", "abc"))
    pair("negative version", "invalid model version", lambda r: setattr(r, "model_version", "-3"))
    pair("wrong shape", "Expected [-1,16], got [1,8]", shape(1, 8))
    pair("wrong rank", "unexpected shape for input 'A'", shape(1, 16, 1))
    pair("wildcard", "All input dimensions should be specified", shape(1, -1))
    pair("no batch dimension", "has no shape but model requires batch dimension", shape())
    pair("batch sizes differ", "batch size does not match other inputs", shape(2, 16), raw(ROW * 2))
    pair("wrong type", "data-type is 'INT32'", lambda r: setattr(r.inputs[0], "datatype", "INT32"))
    pair("no type", "data-type is", lambda r: setattr(r.inputs[0], "datatype", "FP31"))
    pair("too few bytes", "Expected 64, got 60", raw(bytes(60)))
    pair("too many bytes", "Expected 64, got 68", raw(bytes(68)))
    pair("no data", "unable to find data for input tensor", without_data)
    pair(
        "raw and typed",
        "contents field must not be specified",
        lambda r: r.inputs[0].contents.fp32_contents.append(1),
    )
    pair("typed in another type", "unexpected explicit tensor data", typed(1))
    pair("typed in two fields", "binary data was already supplied", typed(2))
    pair(
        "missing input",
        "expected 2 inputs but got 1 inputs",
        lambda r: r.inputs.pop(),
    )
    pair("unknown output", "unexpected inference output", lambda r: r.outputs.add(name="Q"))
    pair("unknown input", "unexpected inference input", lambda r: setattr(r.inputs[0], "name", "Q"))
    pair("duplicate input", "already exists in request", lambda r: r.inputs.append(r.inputs[0]))
    pair("without an id", "[request id: <id_unknown>]", shape(1, 8), lambda r: r.ClearField("id"))
    found["number of inputs"] = (
        changed(flag_request(), lambda r: r.inputs.pop()),
        "expected number of inputs between 1 and 2",
    )
    text("cut length", "incomplete string length indicator", bytes_tensor([b"a"]) + b"\1\0")
    text("cut string", "incomplete string data", bytes_tensor([b"a"]) + b"\x09\0\0\0ab")
    text("too few strings", "expected 2 string elements", bytes_tensor([b"a"]))
    text("too many strings", "unexpected number of string", bytes_tensor([b"a", b"b", b"c"]))
    add_parameter_errors(pair)
    add_region_errors(pair)
    found["class results of FP16"] = (
        changed(half_request(), classes("int64", 1)),
        "unsupported type 'FP16'",
    )
    found["failing model"] = (failing_request(), "Failed to process the request(s)")
    found["failing step"] = (failing_request("ensemble"), "in ensemble 'ensemble'")
    found["wrong shape of an ensemble"] = (
        changed(failing_request("ensemble"), shape(1, 8)),
        "unexpected shape",
    )
    found["failing row"] = (poisoned_request(), "a row is refused")
    add_sequence_errors(found)
    return found


def half_request() -> Request:
    request = Request(model_name="half", id="it", raw_input_contents=[bytes(2)])
    request.inputs.add(name="A", datatype="FP16", shape=[1, 1])
    return request


def poisoned_request() -> Request:
    return changed(flag_request(), lambda r: setattr(r, "model_name", "poisoned"))


def add_parameter_errors(pair: Callable[..., None]) -> None:
    pair("priority value", "expected value >= 0", parameter("priority", "int64", -1))
    pair("priority type", "int64_param or uint64_param", parameter("priority", "string", "1"))
    pair("timeout type", "for 'timeout' parameter", parameter("timeout", "uint64", 5))
    pair("sequence id type", "for 'sequence_id'", parameter("sequence_id", "bool", True))
    pair("sequence start type", "for 'sequence_start'", parameter("sequence_start", "int64", 1))
    pair("sequence end type", "for 'sequence_end'", parameter("sequence_end", "string", "x"))
    pair("reserved key", "are reserved for Triton", parameter("triton_x", "int64", 1))
    flag = "triton_enable_empty_final_response"
    pair("final flag type", f"'{flag}' parameter", parameter(flag, "int64", 1))
    pair("parameter without value", "'p' parameter", lambda r: r.parameters["p"].SetInParent())
    pair("unsigned parameter", "'p' parameter", parameter("p", "uint64", 1))
    pair("classification type", "for 'classification'", classes("string", "2"))
    pair("classification value", "for 'classification'", classes("int64", 0))


def add_region_errors(pair: Callable[..., None]) -> None:
    pair("unknown region", "Unable to find shared memory", without_data, NOWHERE, SIXTY_FOUR)
    pair("region without size", "must be specified along with", without_data, NOWHERE)
    pair(
        "region type",
        "parameter for tensor",
        without_data,
        region("input", "region", "int64", 1),
        SIXTY_FOUR,
    )
    pair(
        "region and contents",
        "unexpected 'content' provided",
        typed(0),
        NOWHERE,
        SIXTY_FOUR,
    )
    pair("size without region", "can not be specified without", SIXTY_FOUR)
    pair(
        "region of an output",
        "Unable to find shared memory",
        region("output", "region", "string", "nowhere"),
        region("output", "byte_size", "int64", 64),
    )
    pair(
        "region and classes",
        "can't set both",
        classes("int64", 1),
        region("output", "region", "string", "nowhere"),
        region("output", "byte_size", "int64", 64),
    )


def add_sequence_errors(found: dict[str, tuple[Request, str]]) -> None:
    found["no correlation id"] = (value_request("sequence"), "correlation ID")
    found["sequence not started"] = (
        changed(value_request("sequence"), parameter("sequence_id", "int64", 4711)),
        "must specify the START flag",
    )
    found["sequence too large"] = (
        changed(
            value_request("sequence"),
            parameter("sequence_id", "int64", 4712),
            parameter("sequence_start", "bool", True),
            shape(2, 1),
            raw(bytes(8)),
        ),
        "must specify batch-size 1",
    )
