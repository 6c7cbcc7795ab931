"""Words that the tests of the control plane share."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.v1 import dataplane_pb2 as pb

TIMEOUT_S = 60.0
# A Triton loads a model within this time, on a busy machine too.
START_TIMEOUT_S = 60.0
Cold = service_pb2_grpc.GRPCInferenceServiceStub


def all_ready(apply: pb.Apply) -> bool:
    placements = [p for model in apply.models for p in model.placements]
    return len(apply.models) == 3 and all(p.ready for p in placements)


def served_by(apply: pb.Apply, name: str) -> set[int]:
    """Indices of the backends that are ready to run the model."""
    return {
        placement.backend_index
        for model in apply.models
        for placement in model.placements
        if model.name == name and placement.ready
    }


def serves_as_written(stub: Cold, name: str) -> bool:
    """Whether this Triton serves the model with the batch limit of its configuration file."""
    request = service_pb2.ModelConfigRequest(name=name)
    try:
        return bool(stub.ModelConfig(request, timeout=TIMEOUT_S).config.max_batch_size == 64)
    except grpc.RpcError:
        return False


def model_ready(stub: Cold, name: str) -> bool:
    request = service_pb2.ModelReadyRequest(name=name)
    return bool(stub.ModelReady(request, timeout=TIMEOUT_S).ready)


def server_ready(stub: Cold) -> bool:
    return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=TIMEOUT_S).ready)


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()


def outcome(stub: Cold, method: str, request: object) -> object:
    """The answer, or status code and text."""
    try:
        return getattr(stub, method)(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code(), error.details()
