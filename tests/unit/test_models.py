"""The test models do what their descriptions say; other tests build on them."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as grpcclient

from scheduler.backends.embedded_triton import EmbeddedTriton

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def client(triton: EmbeddedTriton) -> Iterator[grpcclient.InferenceServerClient]:
    with grpcclient.InferenceServerClient(triton.grpc_address) as connected:
        yield connected


def tensor(name: str, values: npt.NDArray[np.generic], datatype: str) -> grpcclient.InferInput:
    made = grpcclient.InferInput(name, values.shape, datatype)
    made.set_data_from_numpy(values)
    return made


ROWS = np.arange(48, dtype=np.float32).reshape(3, 16)


@pytest.mark.parametrize(
    ("model", "datatype", "values"),
    [
        ("identity", "FP32", ROWS),
        ("identity_small", "FP32", ROWS),
        ("unbatched", "FP32", ROWS[0]),
        ("slow", "FP32", ROWS),
        ("failing", "FP32", ROWS),
        ("optional", "FP32", ROWS),
        ("ensemble", "FP32", ROWS),
        ("identity_bytes", "BYTES", np.array([[b"a", b""], [b"\0", b"long" * 99]], dtype=object)),
        ("identity_int64", "INT64", np.array([[1, -(2**62), 3]], dtype=np.int64)),
        ("identity_fp16", "FP16", np.arange(16, dtype=np.float16).reshape(2, 4, 2)),
        ("identity_bool", "BOOL", np.array([[True, False, True]])),
    ],
)
def test_identities_return_their_input(
    client: grpcclient.InferenceServerClient,
    model: str,
    datatype: str,
    values: npt.NDArray[np.generic],
) -> None:
    result = client.infer(model, [tensor("INPUT0", values, datatype)])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), values)


def test_mixed_echoes_and_adds_up(client: grpcclient.InferenceServerClient) -> None:
    labels = np.array([[b"one"], [b"two"], [b""]], dtype=object)
    result = client.infer(
        "mixed", [tensor("VALUES", ROWS, "FP32"), tensor("LABEL", labels, "BYTES")]
    )
    np.testing.assert_array_equal(result.as_numpy("VALUES_ECHO"), ROWS)
    np.testing.assert_array_equal(result.as_numpy("LABEL_ECHO"), labels)
    np.testing.assert_array_equal(result.as_numpy("SUM"), ROWS.sum(axis=1, keepdims=True))


def test_mixed_computes_rows_independently(
    client: grpcclient.InferenceServerClient, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(64, 16)).astype(np.float32)
    labels = np.full((64, 1), b"x", dtype=object)

    def total(rows: slice) -> bytes:
        inputs = [tensor("VALUES", values[rows], "FP32"), tensor("LABEL", labels[rows], "BYTES")]
        return bytes(client.infer("mixed", inputs).as_numpy("SUM").tobytes())

    together = total(slice(0, 64))
    assert b"".join(total(slice(row, row + 1)) for row in range(64)) == together
    assert b"".join(total(slice(row, row + 7)) for row in range(0, 64, 7)) == together


def test_failing_fails_on_a_negative_number(client: grpcclient.InferenceServerClient) -> None:
    with pytest.raises(grpcclient.InferenceServerException, match="a row has a negative number"):
        client.infer("failing", [tensor("INPUT0", -ROWS, "FP32")])


def test_optional_adds_the_bias_where_there_is_one(
    client: grpcclient.InferenceServerClient,
) -> None:
    inputs = [tensor("INPUT0", ROWS, "FP32"), tensor("BIAS", ROWS, "FP32")]
    result = client.infer("optional", inputs)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), 2 * ROWS)


def test_decoupled_answers_as_often_as_asked(client: grpcclient.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[grpcclient.InferResult, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        count = np.array([[3]], dtype=np.int32)
        client.async_stream_infer("decoupled", [tensor("COUNT", count, "INT32")])
        received = [answers.get(timeout=60) for _ in range(3)]
    finally:
        client.stop_stream()
    assert [error for _, error in received] == [None] * 3
    assert [int(result.as_numpy("INDEX")[0, 0]) for result, _ in received] == [0, 1, 2]


def test_sequences_keep_sums_apart(client: grpcclient.InferenceServerClient) -> None:
    def step(sequence_id: int, value: int, start: bool = False, end: bool = False) -> int:
        inputs = [tensor("VALUE", np.array([[value]], dtype=np.int32), "INT32")]
        result = client.infer(
            "sequence", inputs, sequence_id=sequence_id, sequence_start=start, sequence_end=end
        )
        return int(result.as_numpy("SUM")[0, 0])

    assert step(1, 5, start=True) == 5
    assert step(2, 70, start=True) == 70
    assert step(1, 6) == 11
    assert step(2, 7, end=True) == 77
    assert step(1, 7, end=True) == 18
