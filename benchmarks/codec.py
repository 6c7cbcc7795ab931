"""What the codec costs: nanoseconds of one core per request, per member merged, per member split.

    python -m benchmarks.codec

Figures come from loops inside the codec's binding, so no Python runs per request. Every figure is
checked against `service_pb2` in the same run; one that disagrees is 0.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from tritonclient.grpc import service_pb2

from benchmarks.results import SMALLEST_VALUE, Figure
from scheduler._native import codec

MEMBERS = 64
ROUNDS = 5
REQUESTS_A_ROUND = 128_000


def vector(row: int) -> bytes:
    return struct.pack("<16f", *(row + i for i in range(16)))


def request_of(row: int) -> bytes:
    """A one-row FP32[16] request, as tritonclient sends it."""
    request = service_pb2.ModelInferRequest(model_name="identity", id=str(row))
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.outputs.add(name="OUTPUT0")
    request.raw_input_contents.append(vector(row))
    return request.SerializeToString()


def reply_of(rows: int) -> bytes:
    reply = service_pb2.ModelInferResponse(model_name="identity", model_version="1")
    reply.outputs.add(name="OUTPUT0", datatype="FP32", shape=[rows, 16])
    reply.raw_output_contents.append(b"".join(vector(row) for row in range(rows)))
    return reply.SerializeToString()


def nanoseconds(run: Callable[[], object], items: int) -> float:
    """The best of some rounds of `run`, per item."""
    times = []
    for _ in range(ROUNDS):
        begin = time.process_time_ns()
        run()
        times.append((time.process_time_ns() - begin) / items)
    return min(times)


def figure(name: str, value: float, must: float, aim: float, right: bool) -> Figure:
    shown = max(round(value, 1), SMALLEST_VALUE) if right else 0.0
    return Figure(name, shown, must, aim, "ns", "lower")


def measure() -> list[Figure]:
    schema = codec.ModelSchema("identity", max_batch_size=MEMBERS)
    schema.add_input("INPUT0", "FP32", [16]).add_output("OUTPUT0", "FP32", [16])
    reader = codec.Codec()
    messages = [request_of(row) for row in range(MEMBERS)]
    members = [reader.prepare(message, schema) for message in messages]
    parts = [(member, 0, 1) for member in members]
    merged = service_pb2.ModelInferRequest.FromString(codec.merge(parts))
    batches = REQUESTS_A_ROUND // MEMBERS

    data = b"".join(vector(row) for row in range(MEMBERS))
    merged_right = list(merged.raw_input_contents) == [data]
    reply = codec.Reply(reply_of(MEMBERS))
    reply.splits_into(MEMBERS)
    answers = [codec.write_reply(m, [(reply, row, 1)]) for row, m in enumerate(members)]
    parsed = [service_pb2.ModelInferResponse.FromString(answer) for answer in answers]
    split_right = [(a.id, a.raw_output_contents[0]) for a in parsed] == [
        (str(row), vector(row)) for row in range(MEMBERS)
    ]
    prepare_ns = nanoseconds(
        lambda: reader.repeat_prepare(messages[7], schema, REQUESTS_A_ROUND), REQUESTS_A_ROUND
    )
    merge_ns = nanoseconds(lambda: codec.repeat_merge(parts, batches), REQUESTS_A_ROUND)
    split_ns = nanoseconds(
        lambda: codec.repeat_split(reply_of(MEMBERS), members[0], MEMBERS, batches),
        REQUESTS_A_ROUND,
    )
    return [
        figure("codec_prepare", prepare_ns, 600, 300, all(m.mergeable for m in members)),
        figure("codec_merge_member", merge_ns, 200, 100, merged_right),
        figure("codec_split_member", split_ns, 300, 150, split_right),
    ]


if __name__ == "__main__":
    for line in measure():
        print(line.to_json())
