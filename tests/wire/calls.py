"""Requests and answers of the wire tests, as plain grpcio sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2, service_pb2_grpc

ANSWER_TIMEOUT_S = 30.0
# A channel that shares nothing with other channels of the process and hides nothing by retrying.
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

Matrix = np.ndarray[Any, np.dtype[np.float32]]
Stub = service_pb2_grpc.GRPCInferenceServiceStub


@contextmanager
def connected(address: str) -> Iterator[Stub]:
    """A stub over a connection of its own."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        yield Stub(channel)


def rows(first: float, count: int = 1, width: int = 16) -> Matrix:
    """`count` rows that no other test value has: first, first + 1/1024, ..."""
    data = first + np.arange(count * width, dtype=np.float32) / 1024
    return data.reshape(count, width)


def infer_request(
    values: Matrix,
    *,
    model: str = "identity",
    version: str = "",
    request_id: str = "",
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> service_pb2.ModelInferRequest:
    """INPUT0 FP32 with raw contents."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=values.shape)
    request.raw_input_contents.append(values.astype(np.float32).tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        set_parameter(request.parameters[key], value)
    return request


def set_parameter(parameter: service_pb2.InferParameter, value: Any) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def output(response: service_pb2.ModelInferResponse, index: int = 0) -> Matrix:
    data = np.frombuffer(response.raw_output_contents[index], np.float32)
    return data.reshape(tuple(response.outputs[index].shape))


def error_of(call: grpc.Future) -> grpc.RpcError:
    """Waits for the call and returns its error. Fails when it succeeded."""
    error = call.exception(timeout=ANSWER_TIMEOUT_S)
    assert isinstance(error, grpc.RpcError), f"the call succeeded: {call.result()}"
    return error


def infer_error(stub: Stub, request: service_pb2.ModelInferRequest, **call: Any) -> grpc.RpcError:
    call.setdefault("timeout", ANSWER_TIMEOUT_S)
    return error_of(stub.ModelInfer.future(request, **call))


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo in the details; its status must repeat code and text of the call."""
    return _detail(error, error_details_pb2.ErrorInfo)


def retry_delay_ms(error: grpc.RpcError) -> float:
    """Of the RetryInfo in the details."""
    delay = _detail(error, error_details_pb2.RetryInfo).retry_delay
    return float(delay.ToTimedelta().total_seconds()) * 1000


def has_retry_delay(error: grpc.RpcError) -> bool:
    return _find_detail(error, error_details_pb2.RetryInfo) is not None


def pushback_ms(error: grpc.RpcError) -> int | None:
    """The trailer that tells clients when to retry."""
    trailers = dict(error.trailing_metadata() or ())
    text = trailers.get("grpc-retry-pushback-ms")
    return None if text is None else int(text)


def _detail(error: grpc.RpcError, kind: Any) -> Any:
    found = _find_detail(error, kind)
    assert found is not None, f"no {kind.DESCRIPTOR.name} in {rpc_status.from_call(error)}"
    return found


def _find_detail(error: grpc.RpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} carries no details"
    assert (status.code, status.message) == (error.code().value[0], error.details())
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def quota_subject(error: grpc.RpcError) -> str:
    """Of the one violation of the QuotaFailure in the details."""
    (violation,) = _detail(error, error_details_pb2.QuotaFailure).violations
    return str(violation.subject)
