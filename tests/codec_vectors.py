"""A small model of vectors, its requests and what the codec makes of them."""

from __future__ import annotations

import struct

import pytest

from scheduler._native import codec
from tests.codec_messages import Request

INVALID_ARGUMENT = 3
INTERNAL = 13
ROW = struct.pack("<4f", 1, 2, 3, 4)


def vector_schema(**options: object) -> codec.ModelSchema:
    """Model m: I FP32[4] -> O FP32[4], P FP32[-1]; at most 8 rows."""
    options.setdefault("max_batch_size", 8)
    schema = codec.ModelSchema("m", "1", **options)  # type: ignore[arg-type]
    schema.add_input("I", "FP32", [4])
    return schema.add_output("O", "FP32", [4]).add_output("P", "FP32", [-1])


def vector_request(rows: int = 1, **fields: object) -> Request:
    request = Request(model_name="m", raw_input_contents=[ROW * rows], **fields)
    request.inputs.add(name="I", datatype="FP32", shape=[rows, 4])
    return request


def prepare(
    request: Request, schema: codec.ModelSchema | None = None, metadata: bytes = b""
) -> codec.PreparedRequest:
    return codec.Codec().prepare(request.SerializeToString(), schema or vector_schema(), metadata)


def refusal(request: Request, schema: codec.ModelSchema | None = None) -> tuple[int, str]:
    with pytest.raises(codec.CodecError) as caught:
        prepare(request, schema)
    return caught.value.code, caught.value.text
