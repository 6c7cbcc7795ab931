"""Events, messages, headers and statuses as Python sees them and as the sessions do."""


class Event(NamedTuple):
    kind: str
    stream: int
    route: int = 0
    nothing_ran: bool = False
    end_stream: bool = False
    arrival: int = 0
    deadline: int | None = None
    bytes: int = 0
    window_bytes: int = 0
    message: bytes = b""
    metadata: bytes = b""
    headers: tuple = ()
    code: int = 0
    text: str = ""
    details: bytes = b""
    retry_pushback_ms: int = -1
    answer_headers: tuple = ()
    answer_trailers: tuple = ()


cdef inline uint64_t monotonic_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <uint64_t>at.tv_sec * 1_000_000_000 + <uint64_t>at.tv_nsec


cdef inline Span span_of(const uint8_t[::1] data) noexcept:
    cdef Span span
    if data is not None and data.shape[0] > 0:
        span.data = &data[0]
        span.size = data.shape[0]
    return span


cdef inline bytes bytes_of(Span span):
    return (<const char*>span.data)[: span.size] if span.size else b""


cdef inline string_view view_of(bytes text) noexcept:
    return string_view(<const char*>text, len(text))


cdef Headers headers_of(pairs) except *:
    cdef Headers headers
    cdef pair[string, string] header
    for name, value in pairs:
        header.first = name.encode() if isinstance(name, str) else name
        header.second = value.encode() if isinstance(value, str) else value
        headers.push_back(header)
    return headers


cdef object pairs_of(Headers& headers):
    return tuple([(h.first.decode("latin-1"), h.second.decode("latin-1")) for h in headers])


cdef AnswerMetadata metadata_of(headers, trailers) except *:
    cdef AnswerMetadata metadata
    metadata.headers = headers_of(headers)
    metadata.trailers = headers_of(trailers)
    return metadata


cdef Status status_of(int code, str text, bytes details, int64_t retry_pushback_ms) except *:
    cdef Status status
    status.code = <StatusCode>code
    status.message = text.encode()
    status.details = details
    status.retry_pushback_ms = retry_pushback_ms
    return status


cdef Compression compression_of(str name) except *:
    return <Compression><int>COMPRESSIONS.index(name)


cdef Pieces pieces_of(message) except *:
    """One piece a bytes object: small ones are copied into the message, larger ones referred to."""
    cdef Pieces pieces
    cdef BufferRef owner
    for part in [message] if isinstance(message, bytes) else message:
        if len(part) <= 1024:
            pieces.append_copy(span_of(part))
        else:
            owner = BufferRef.copy_of(span_of(part))
            pieces.append_reference(owner, owner.span())
    return move(pieces)


cdef object event_of(EventCpp* event):
    return Event(
        EVENT_KINDS[<int>event.kind],
        event.stream,
        event.route,
        event.nothing_ran,
        event.end_stream,
        event.arrival,
        None if event.deadline == NEVER else event.deadline,
        event.bytes,
        event.window_bytes,
        bytes_of(event.message.span()),
        event.metadata,
        pairs_of(event.headers),
        <int>event.status.code,
        event.status.message.decode("utf-8", "replace"),
        event.status.details,
        event.status.retry_pushback_ms,
        pairs_of(event.answer.headers),
        pairs_of(event.answer.trailers),
    )
