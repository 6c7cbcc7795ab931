"""Text forms of headers, error details and the loopback of benchmarks."""


def timeout_from_text(bytes text):
    """Nanoseconds of a grpc-timeout value; None where it is malformed."""
    cdef Nanos timeout = 0
    return timeout if parse_timeout(view_of(text), &timeout) else None


def timeout_to_text(Nanos timeout_ns):
    return format_timeout(timeout_ns)


def encode_percent(bytes text):
    return percent_encode(view_of(text))


def decode_percent(bytes text):
    return percent_decode(view_of(text))


def encode_base64(bytes data):
    return base64_encode(view_of(data))


def decode_base64(bytes text):
    """The bytes; None where `text` is malformed."""
    cdef string data
    return <bytes>data if base64_decode(view_of(text), &data) else None


def error_details(
    int code, bytes text, *, bytes reason=None, retry_ns=None, tuple quota=None, tuple field=None
):
    """A serialised google.rpc.Status."""
    cdef ErrorDetails details
    if reason is not None:
        details.error_info(view_of(reason))
    if retry_ns is not None:
        details.retry_info(retry_ns)
    if quota is not None:
        details.quota_failure(view_of(quota[0]), view_of(quota[1]))
    if field is not None:
        details.bad_request(view_of(field[0]), view_of(field[1]))
    return details.serialise(<StatusCode>code, view_of(text))


def loopback(requests=100_000, in_flight=64, request_bytes=128, reply_bytes=128):
    """Runs `requests` calls between two sessions in memory; times are nanoseconds a request."""
    cdef LoopbackLoad load
    cdef LoopbackResult result
    load.requests = requests
    load.in_flight = in_flight
    load.request_bytes = request_bytes
    load.reply_bytes = reply_bytes
    with nogil:
        result = run_loopback(load, monotonic_ns)
    return {
        "answered": result.answered,
        "server_ns": result.server_ticks / load.requests,
        "total_ns": result.total_ticks / load.requests,
        "server_bytes": result.server_bytes,
        "client_bytes": result.client_bytes,
    }
