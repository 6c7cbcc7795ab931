"""Refuses calls that no servicer can take as Triton's gRPC server does.

By itself grpcio's would answer in words of its own, and log every one of them.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

# grpcio's types do not show that there may be no handler, nor what is in it.
Handler = Any


class TritonRefusals(grpc.aio.ServerInterceptor):
    """Unknown methods, and requests that cannot be parsed."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(_no_such_method)
        if handler.unary_unary is not None:
            return _parsing_one(handler)
        return handler if handler.unary_stream is None else _parsing_many(handler)


async def _no_such_method(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
    yield b""


def _parsing_one(handler: Handler) -> Handler:
    async def answer(message: bytes, context: grpc.aio.ServicerContext) -> Any:
        request = await _parsed(handler, message, context)
        found = handler.unary_unary(request, context)
        return await found if inspect.isawaitable(found) else found

    return grpc.unary_unary_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )


def _parsing_many(handler: Handler) -> Handler:
    async def answer(message: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        request = await _parsed(handler, message, context)
        async for found in handler.unary_stream(request, context):
            yield found

    return grpc.unary_stream_rpc_method_handler(
        answer, response_serializer=handler.response_serializer
    )


async def _parsed(handler: Handler, message: bytes, context: grpc.aio.ServicerContext) -> Any:
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        return await context.abort(grpc.StatusCode.INTERNAL, "Unable to parse request")
