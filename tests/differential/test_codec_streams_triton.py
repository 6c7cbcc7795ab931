"""Stream messages, sequences and regions: what the codec says and writes is what Triton does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from multiprocessing import shared_memory

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler._native import codec
from scheduler.backends.embedded_triton import EmbeddedTriton
from tests import models
from tests.codec_messages import Request, Response

pytestmark = pytest.mark.e2e

StreamResponse = service_pb2.ModelStreamInferResponse
METHOD = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """To a Triton with an identity, a sequence, a decoupled and a failing model."""
    repository = tmp_path_factory.mktemp("models")
    models.identity(repository)
    models.sequence(repository)
    models.decoupled(repository)
    models.failing(repository)
    with (
        EmbeddedTriton(repository) as triton,
        grpc.insecure_channel(triton.grpc_address) as channel,
    ):
        yield channel


def identity_schema(name: str = "identity") -> codec.ModelSchema:
    schema = codec.ModelSchema(name, max_batch_size=64)
    return schema.add_input("INPUT0", "FP32", [16]).add_output("OUTPUT0", "FP32", [16])


def identity_request(name: str = "identity", fill: int = 1, **fields: object) -> Request:
    request = Request(model_name=name, raw_input_contents=[bytes([fill] * 64)], **fields)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    return request


def infer(channel: grpc.Channel, message: bytes) -> bytes:
    return bytes(channel.unary_unary(METHOD + "ModelInfer")(message, timeout=30))


def verdict(channel: grpc.Channel, message: bytes) -> tuple[int, str]:
    try:
        infer(channel, message)
    except grpc.RpcError as error:
        return error.code().value[0], error.details()
    return 0, ""


def our_verdict(message: bytes, schema: codec.ModelSchema) -> tuple[int, str]:
    try:
        codec.Codec().prepare(message, schema)
    except codec.CodecError as error:
        return error.code, error.text
    return 0, ""


def stream(channel: grpc.Channel, messages: list[bytes]) -> list[bytes]:
    return list(channel.stream_stream(METHOD + "ModelStreamInfer")(iter(messages), timeout=30))


PARAMETERS: tuple[dict[str, object], ...] = (
    {"int64_param": 3},
    {"int64_param": 0},
    {"uint64_param": 3},
    {"string_param": "three"},
    {"string_param": ""},
    {"string_param": "x" * 128},
    {"string_param": "x" * 129},
    {"string_param": "é" * 65},
    {"bool_param": True},
    {"double_param": 1.0},
    {},
)


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end", "sequence_x"])
@pytest.mark.parametrize("value", PARAMETERS, ids=lambda value: str(value)[:30])
def test_sequence_parameters_are_judged_alike(
    channel: grpc.Channel, name: str, value: dict[str, object]
) -> None:
    request = identity_request(id="7")
    request.parameters[name].SetInParent()
    for field, content in value.items():
        setattr(request.parameters[name], field, content)
    message = request.SerializeToString()

    assert our_verdict(message, identity_schema()) == verdict(channel, message)


@pytest.mark.parametrize("tensor", ["input", "output"])
def test_regions_are_judged_alike(channel: grpc.Channel, tensor: str) -> None:
    service = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    block = shared_memory.SharedMemory(create=True, size=64)
    try:
        service.SystemSharedMemoryRegister(
            service_pb2.SystemSharedMemoryRegisterRequest(
                name="region", key="/" + block.name, offset=0, byte_size=64
            )
        )
        rng = random.Random(11)
        for _ in range(300):
            request = identity_request(id=rng.choice(("", "7")))
            target = request.inputs[0]
            if tensor == "output":
                target = request.outputs.add(name="OUTPUT0")
            elif rng.random() < 0.9:
                del request.raw_input_contents[:]
            for key, good in (
                ("region", {"string_param": "region"}),
                ("byte_size", {"int64_param": 64}),
                ("offset", {"int64_param": 0}),
            ):
                if rng.random() < 0.2:
                    continue
                value = good if rng.random() < 0.8 else rng.choice(PARAMETERS)
                target.parameters["shared_memory_" + key].SetInParent()
                for field, content in value.items():
                    setattr(target.parameters["shared_memory_" + key], field, content)
            if rng.random() < 0.1 and tensor == "input":
                target.contents.fp32_contents.append(1)
            if rng.random() < 0.2 and tensor == "output":
                target.parameters["classification"].int64_param = rng.choice((0, 1))
            message = request.SerializeToString()
            ours = our_verdict(message, identity_schema())
            theirs = verdict(channel, message)
            # Whether a place is inside a region, and what follows from it, only Triton knows.
            if ours[0] != 0 or not codec.Codec().prepare(message, identity_schema()).regions:
                assert ours == theirs, request
    finally:
        service.SystemSharedMemoryUnregister(
            service_pb2.SystemSharedMemoryUnregisterRequest(name="region")
        )
        block.close()
        block.unlink()


def same_from_triton(channel: grpc.Channel, request: Request) -> list[StreamResponse]:
    """Triton's replies to the request on a stream of its own."""
    return [StreamResponse.FromString(m) for m in stream(channel, [request.SerializeToString()])]


@pytest.mark.parametrize("client_id", ["", "mine", "mi\0ne"])
@pytest.mark.parametrize("empty_final", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_replies_of_a_decoupled_model_are_those_to_the_client(
    channel: grpc.Channel, client_id: str, empty_final: bool, count: int
) -> None:
    schema = codec.ModelSchema("decoupled", max_batch_size=8, decoupled=True)
    schema.add_input("COUNT", "INT32", [1]).add_output("INDEX", "INT32", [1])
    request = Request(
        model_name="decoupled", id=client_id, raw_input_contents=[count.to_bytes(4, "little")]
    )
    request.inputs.add(name="COUNT", datatype="INT32", shape=[1, 1])
    if empty_final:
        request.parameters["triton_enable_empty_final_response"].bool_param = True
    prepared = codec.Codec().prepare(request.SerializeToString(), schema)

    sent = codec.write_stream_request(prepared, b"17", empty_final=True)
    replies = [codec.StreamReply(message) for message in stream(channel, [sent])]

    assert [reply.final for reply in replies] == [False] * count + [True]
    assert [reply.empty for reply in replies] == [False] * count + [True]
    assert all(reply.id == b"17" for reply in replies)
    shown = [
        StreamResponse.FromString(codec.write_stream_reply(reply, b"17", client_id.encode()))
        for reply in replies
        if not reply.empty or prepared.wants_empty_final
    ]
    assert shown == same_from_triton(channel, request)


@pytest.mark.parametrize("client_id", ["", "mine", "mi\0ne"])
def test_replies_to_plain_requests_are_those_of_triton(
    channel: grpc.Channel, client_id: str
) -> None:
    request = identity_request(id=client_id)
    message = request.SerializeToString()
    prepared = codec.Codec().prepare(message, identity_schema())
    reply = codec.Reply(infer(channel, message))

    wrapped = codec.wrap_stream_reply(prepared, [(reply, 0, 1)], whole=True)

    assert [StreamResponse.FromString(wrapped)] == same_from_triton(channel, request)


@pytest.mark.parametrize("client_id", ["", "mine", "mi\0ne"])
@pytest.mark.parametrize("version", ["", "1", "1\0x"])
def test_errors_are_those_of_triton(channel: grpc.Channel, client_id: str, version: str) -> None:
    refused = identity_request(id=client_id, model_version=version)
    refused.inputs[0].shape[1] = 15
    code, text = our_verdict(refused.SerializeToString(), identity_schema())
    assert code != 0
    ours = codec.write_stream_error(text.encode(), client_id.encode())
    assert [StreamResponse.FromString(ours)] == same_from_triton(channel, refused)

    failing = identity_request("failing", 0xFF, id=client_id, model_version=version)
    failing.raw_input_contents[0] = b"\0\0\x80\xbf" * 16
    message = failing.SerializeToString()
    code, text = verdict(channel, message)
    assert code != 0
    prepared = codec.Codec().prepare(message, identity_schema("failing"))
    ours = codec.write_stream_failure(prepared, text.encode())
    assert [StreamResponse.FromString(ours)] == same_from_triton(channel, failing)

    nowhere = identity_request("nowhere", id=client_id)
    sent = Request.FromString(nowhere.SerializeToString())
    sent.id = "17"
    reply = codec.StreamReply(stream(channel, [sent.SerializeToString()])[0])
    assert reply.final
    back = codec.write_stream_reply(reply, b"17", client_id.encode())
    assert [StreamResponse.FromString(back)] == same_from_triton(channel, nowhere)


def test_a_sequence_goes_over_our_stream(channel: grpc.Channel) -> None:
    schema = codec.ModelSchema("sequence", max_batch_size=8, sequence=True)
    schema.add_input("VALUE", "INT32", [1]).add_output("SUM", "INT32", [1])
    reader = codec.Codec()
    sent = []
    for step in range(4):
        request = Request(model_name="sequence", id=f"step-{step}")
        request.inputs.add(name="VALUE", datatype="INT32", shape=[1, 1])
        request.raw_input_contents.append((step + 1).to_bytes(4, "little"))
        request.parameters["sequence_id"].int64_param = 77
        request.parameters["sequence_start"].bool_param = step == 0
        request.parameters["sequence_end"].bool_param = step == 3
        prepared = reader.prepare(request.SerializeToString(), schema)
        assert prepared.sequence_text == b"77"
        sent.append(codec.write_stream_request(prepared, str(step).encode()))

    replies = [codec.StreamReply(message) for message in stream(channel, sent)]

    assert [reply.id for reply in replies] == [b"0", b"1", b"2", b"3"]
    assert all(reply.final and not reply.empty for reply in replies)
    sums = [Response.FromString(r.response or b"").raw_output_contents[0] for r in replies]
    assert [int.from_bytes(total, "little") for total in sums] == [1, 3, 6, 10]
