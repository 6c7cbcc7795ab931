"""Owning wrappers of the gRPC sessions, for tests, benchmarks and tools.

Bytes in by `feed`, bytes out by `pull`, events as named tuples. The data plane drives the sessions
inside C++; nothing here is on its path.
"""

from typing import NamedTuple

cimport cython
from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.pair cimport pair
from libcpp.vector cimport vector
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from scheduler._native.http2 cimport *

cdef Nanos NEVER = 0x7FFFFFFFFFFFFFFF

EVENT_KINDS = (
    "request",
    "cancelled",
    "stream_opened",
    "message",
    "half_closed",
    "reply",
    "forward_headers",
    "forward_data",
    "forward_trailers",
    "forward_end",
    "forward_reset",
    "forward_sent",
)
COMPRESSIONS = ("identity", "gzip", "deflate")
ROUTE_KINDS = ("unary", "message_stream", "unimplemented", "forward")

include "http2_values.pxi"


cdef memory_of(Space space):
    if space.size == 0:
        return memoryview(bytearray())
    return PyMemoryView_FromMemory(<char*>space.data, space.size, PyBUF_WRITE)


cdef class ByteBudget:
    """Bytes that the requests of all sessions sharing it may hold."""

    cdef ByteBudgetCpp budget

    def __init__(self, max_bytes=4 << 30):
        self.budget.max = max_bytes

    @property
    def used(self):
        return self.budget.used

    @property
    def unsent(self):
        return self.budget.unsent


@cython.no_gc_clear  # the session uses the budget until it is gone
cdef class ServerSession:
    """The server's side of one connection."""

    cdef ServerConfig config
    cdef ByteBudget budget
    cdef unique_ptr[ServerSessionCpp] session

    def __cinit__(
        self,
        routes=(),
        *,
        ByteBudget budget=None,
        message_bytes_max=None,
        streams_max=None,
        connection_window_bytes=None,
        stream_window_bytes=None,
        frame_bytes_max=None,
        header_list_bytes_max=None,
        unsent_answer_bytes_max=None,
        forward_metadata=(),
        watched_headers=(),
        response_compression="identity",
        internal_headers=(),
    ):
        cdef Route route
        for path, kind, text in routes:
            route.path = path.encode()
            route.kind = <RouteKind><int>ROUTE_KINDS.index(kind)
            route.text = text.encode()
            self.config.routes.push_back(route)
        if message_bytes_max is not None:
            self.config.message_bytes_max = message_bytes_max
        if streams_max is not None:
            self.config.streams_max = streams_max
        if connection_window_bytes is not None:
            self.config.connection_window_bytes = connection_window_bytes
        if stream_window_bytes is not None:
            self.config.stream_window_bytes = stream_window_bytes
        if frame_bytes_max is not None:
            self.config.frame_bytes_max = frame_bytes_max
        if header_list_bytes_max is not None:
            self.config.header_list_bytes_max = header_list_bytes_max
        if unsent_answer_bytes_max is not None:
            self.config.unsent_answer_bytes_max = unsent_answer_bytes_max
        for name in forward_metadata:
            self.config.forward_metadata.push_back(<string>name.encode())
        self.config.response_compression = compression_of(response_compression)
        for name in watched_headers:
            self.config.watched_headers.push_back(<string>name.encode())
        for name in internal_headers:
            self.config.internal_headers.push_back(<string>name.encode())
        self.budget = budget if budget is not None else ByteBudget()
        self.session.reset(new ServerSessionCpp(&self.config, &self.budget.budget))

    def pace_until(self, Nanos moment):
        self.config.paced_until = moment

    def feed(self, const uint8_t[::1] data, now=0):
        return self.session.get().feed(span_of(data), now)

    def receive_space(self):
        return memory_of(self.session.get().receive_space())

    def events(self):
        cdef EventCpp event
        taken = []
        while self.session.get().next_event(&event):
            taken.append(event_of(&event))
        return taken

    def next_event(self):
        cdef EventCpp event
        return event_of(&event) if self.session.get().next_event(&event) else None

    def has_events(self):
        return self.session.get().has_events()

    def connection_lost(self):
        self.session.get().connection_lost()

    def answer(self, StreamId stream, message, trailers=(), headers=()):
        cdef Pieces pieces = pieces_of(message)
        cdef AnswerMetadata metadata = metadata_of(headers, trailers)
        self.session.get().answer(stream, move(pieces), &metadata)

    def refuse(
        self,
        StreamId stream,
        int code,
        str text,
        bytes details=b"",
        retry_pushback_ms=-1,
        trailers=(),
        headers=(),
    ):
        cdef Status status = status_of(code, text, details, retry_pushback_ms)
        cdef AnswerMetadata metadata = metadata_of(headers, trailers)
        self.session.get().refuse(stream, status, &metadata)

    def send(self, StreamId stream, message, headers=()):
        cdef Pieces pieces = pieces_of(message)
        cdef AnswerMetadata metadata = metadata_of(headers, ())
        self.session.get().send(stream, move(pieces), &metadata)

    def finish(
        self, StreamId stream, int code=0, str text="", bytes details=b"", trailers=(), headers=()
    ):
        cdef Status status = status_of(code, text, details, -1)
        cdef AnswerMetadata metadata = metadata_of(headers, trailers)
        self.session.get().finish(stream, status, &metadata)

    def hold(self, StreamId stream, bint held):
        self.session.get().hold(stream, held)

    def unsent_bytes(self, StreamId stream):
        return self.session.get().unsent_bytes(stream)

    def release(self, event):
        self.session.get().release(event.bytes, event.window_bytes)

    def set_aside(self, event):
        """Returns the event as it is to be released."""
        self.session.get().set_aside(event.window_bytes)
        return event._replace(window_bytes=0)

    @property
    def unpaid_window_bytes(self):
        return self.session.get().unpaid_window_bytes()

    def forward_headers(self, StreamId stream, headers, cbool end_stream=False):
        self.session.get().forward_headers(stream, headers_of(headers), end_stream)

    def forward_data(self, StreamId stream, const uint8_t[::1] data):
        cdef BufferRef owner = BufferRef.copy_of(span_of(data))
        self.session.get().forward_data(stream, owner, owner.span())

    def forward_trailers(self, StreamId stream, trailers):
        self.session.get().forward_trailers(stream, headers_of(trailers))

    def forward_consumed(self, StreamId stream, uint64_t count):
        self.session.get().forward_consumed(stream, count)

    def reset(self, StreamId stream, uint32_t http2_error_code):
        self.session.get().reset(stream, http2_error_code)

    def pull_slices(self, size_t bytes_max=1 << 20):
        cdef vector[Slice] slices
        self.session.get().pull(bytes_max, &slices)
        return [bytes_of(piece.bytes) for piece in slices]

    def pull(self, size_t bytes_max=1 << 20):
        return b"".join(self.pull_slices(bytes_max))

    def wants_write(self):
        return self.session.get().wants_write()

    def wants_read(self):
        return self.session.get().wants_read()

    def begin_drain(self):
        self.session.get().begin_drain()

    def finished(self):
        return self.session.get().finished()

    @property
    def open_streams(self):
        return self.session.get().open_streams()

    @property
    def resets_received(self):
        return self.session.get().resets_received()


@cython.no_gc_clear  # the session uses the budget until it is gone
cdef class ClientSession:
    """The client's side of one connection."""

    cdef ByteBudget budget
    cdef unique_ptr[ClientSessionCpp] session
    cdef dict paths  # the session refers to the path of a call

    def __cinit__(
        self,
        *,
        ByteBudget budget=None,
        authority="backend",
        user_agent=None,
        message_bytes_max=None,
        connection_window_bytes=None,
        stream_window_bytes=None,
        frame_bytes_max=None,
        compression="identity",
        encrypted=False,
    ):
        cdef ClientConfig config
        config.encrypted = encrypted
        config.compression = compression_of(compression)
        config.authority = authority.encode()
        if user_agent is not None:
            config.user_agent = user_agent.encode()
        if message_bytes_max is not None:
            config.message_bytes_max = message_bytes_max
        if connection_window_bytes is not None:
            config.connection_window_bytes = connection_window_bytes
        if stream_window_bytes is not None:
            config.stream_window_bytes = stream_window_bytes
        if frame_bytes_max is not None:
            config.frame_bytes_max = frame_bytes_max
        self.paths = {}
        self.budget = budget if budget is not None else ByteBudget()
        config.budget = &self.budget.budget
        self.session.reset(new ClientSessionCpp(config))

    def feed(self, const uint8_t[::1] data, now=0):
        return self.session.get().feed(span_of(data), now)

    def receive_space(self):
        return memory_of(self.session.get().receive_space())

    def events(self):
        cdef EventCpp event
        taken = []
        while self.session.get().next_event(&event):
            taken.append(event_of(&event))
        return taken

    def has_events(self):
        return self.session.get().has_events()

    def connection_lost(self):
        self.session.get().connection_lost()

    def call(self, str path, message, timeout_ns=None, bytes metadata=b""):
        cdef bytes kept = self.paths.setdefault(path, path.encode())
        cdef Pieces pieces = pieces_of(message)
        cdef Nanos timeout = NEVER if timeout_ns is None else timeout_ns
        return self.session.get().call(view_of(kept), timeout, view_of(metadata), move(pieces))

    def cancel(self, StreamId stream):
        self.session.get().cancel(stream)

    def open_stream(self, str path, timeout_ns=None, bytes metadata=b""):
        cdef bytes kept = self.paths.setdefault(path, path.encode())
        cdef Nanos timeout = NEVER if timeout_ns is None else timeout_ns
        return self.session.get().open_stream(view_of(kept), timeout, view_of(metadata))

    def send(self, StreamId stream, message):
        cdef Pieces pieces = pieces_of(message)
        self.session.get().send(stream, move(pieces))

    def half_close(self, StreamId stream):
        self.session.get().half_close(stream)

    def consumed(self, StreamId stream, uint64_t count):
        self.session.get().consumed(stream, count)

    def unsent_bytes(self, StreamId stream):
        return self.session.get().unsent_bytes(stream)

    def ready(self):
        return self.session.get().ready()

    def draining(self):
        return self.session.get().draining()

    def forward_open(self, headers, cbool end_stream=False):
        return self.session.get().forward_open(headers_of(headers), end_stream)

    def forward_data(self, StreamId stream, const uint8_t[::1] data, cbool end_stream=False):
        cdef BufferRef owner = BufferRef.copy_of(span_of(data))
        self.session.get().forward_data(stream, owner, owner.span(), end_stream)

    def forward_consumed(self, StreamId stream, uint64_t count):
        self.session.get().forward_consumed(stream, count)

    def reset(self, StreamId stream, uint32_t http2_error_code):
        self.session.get().reset(stream, http2_error_code)

    def pull_slices(self, size_t bytes_max=1 << 20):
        cdef vector[Slice] slices
        self.session.get().pull(bytes_max, &slices)
        return [bytes_of(piece.bytes) for piece in slices]

    def pull(self, size_t bytes_max=1 << 20):
        return b"".join(self.pull_slices(bytes_max))

    def wants_write(self):
        return self.session.get().wants_write()

    def finished(self):
        return self.session.get().finished()

    @property
    def open_streams(self):
        return self.session.get().open_streams()


include "http2_text.pxi"
