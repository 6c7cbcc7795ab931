"""Words that the tests of the control plane share."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from scheduler.v1 import dataplane_pb2 as pb

TIMEOUT_S = 5.0
# A backend that went or came is to be noticed within this time.
NOTICE_S = 1.0
Cold = service_pb2_grpc.GRPCInferenceServiceStub


def all_ready(apply: pb.Apply) -> bool:
    placements = [p for model in apply.models for p in model.placements]
    return len(apply.models) == 3 and all(p.ready for p in placements)


def server_ready(stub: Cold) -> bool:
    return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=TIMEOUT_S).ready)


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), raised.value.details()
