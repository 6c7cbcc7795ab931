"""C++ declarations of csrc/http2 that the binding uses."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view()
        string_view(const char *, size_t)


cdef extern from "base/time.h" namespace "infersched" nogil:
    ctypedef int64_t Nanos


cdef extern from "base/status.h" namespace "infersched" nogil:
    cdef enum class StatusCode(uint8_t):
        kOk

    cdef cppclass Status:
        StatusCode code
        string message
        string details
        int64_t retry_pushback_ms


cdef extern from "base/bytes.h" namespace "infersched" nogil:
    cdef cppclass Span:
        Span()
        const uint8_t *data
        size_t size

    cdef cppclass Space:
        uint8_t *data
        size_t size

    cdef cppclass BufferRef:
        BufferRef()

        @staticmethod
        BufferRef copy_of(Span)
        Span span()
        size_t references()

    cdef cppclass Slice:
        BufferRef owner
        Span bytes

    cdef cppclass Pieces:
        Pieces()
        Pieces(Pieces)
        void append_copy(Span)
        void append_reference(const BufferRef &, Span)


cdef extern from "base/error_details.h" namespace "infersched" nogil:
    cdef cppclass ErrorDetails:
        ErrorDetails()
        ErrorDetails &error_info(string_view)
        ErrorDetails &retry_info(Nanos)
        ErrorDetails &quota_failure(string_view, string_view)
        ErrorDetails &bad_request(string_view, string_view)
        string serialise(StatusCode, string_view)


cdef extern from "http2/headers.h" namespace "infersched::http2" nogil:
    cbool parse_timeout(string_view, Nanos *)
    string format_timeout(Nanos)
    string percent_encode(string_view)
    string percent_decode(string_view)
    string base64_encode(string_view)
    cbool base64_decode(string_view, string *)


cdef extern from "http2/session.h" namespace "infersched::http2" nogil:
    ctypedef int32_t StreamId
    ctypedef vector[pair[string, string]] Headers

    cdef cppclass ByteBudgetCpp "infersched::http2::ByteBudget":
        uint64_t used
        uint64_t unsent
        uint64_t max

    cdef enum class RouteKind(uint8_t):
        kUnary
        kMessageStream
        kUnimplemented
        kForward

    cdef enum class Compression(uint8_t):
        kNone
        kGzip
        kDeflate

    cdef cppclass AnswerMetadata:
        Headers headers
        Headers trailers

    cdef cppclass Route:
        string path
        RouteKind kind
        string text

    cdef cppclass ServerConfig:
        vector[Route] routes
        size_t message_bytes_max
        uint32_t streams_max
        uint32_t connection_window_bytes
        uint32_t stream_window_bytes
        uint32_t frame_bytes_max
        uint32_t header_list_bytes_max
        uint32_t unsent_answer_bytes_max
        vector[string] forward_metadata
        vector[string] watched_headers
        Compression response_compression
        Nanos paced_until
        vector[string] internal_headers

    cdef enum class EventKind(uint8_t):
        kRequest
        kCancelled
        kStreamOpened
        kMessage
        kHalfClosed
        kReply
        kForwardHeaders
        kForwardData
        kForwardTrailers
        kForwardEnd
        kForwardReset
        kForwardSent

    cdef cppclass EventCpp "infersched::http2::Event":
        EventKind kind
        StreamId stream
        uint16_t route
        cbool nothing_ran
        cbool end_stream
        Nanos arrival
        Nanos deadline
        uint64_t bytes
        uint64_t window_bytes
        BufferRef message
        string metadata
        Headers headers
        Status status
        AnswerMetadata answer

    cdef cppclass ServerSessionCpp "infersched::http2::ServerSession":
        ServerSessionCpp(const ServerConfig *, ByteBudgetCpp *)
        cbool feed(Span, Nanos)
        Space receive_space()
        cbool next_event(EventCpp *)
        cbool has_events()
        void connection_lost()
        void answer(StreamId, Pieces, const AnswerMetadata *)
        void refuse(StreamId, const Status &, const AnswerMetadata *)
        void release(uint64_t, uint64_t)
        void set_aside(uint64_t)
        uint64_t unpaid_window_bytes()
        void send(StreamId, Pieces, const AnswerMetadata *)
        void finish(StreamId, const Status &, const AnswerMetadata *)
        void hold(StreamId, cbool)
        uint64_t unsent_bytes(StreamId)
        void forward_headers(StreamId, const Headers &, cbool)
        void forward_data(StreamId, const BufferRef &, Span)
        void forward_trailers(StreamId, const Headers &)
        void forward_consumed(StreamId, uint64_t)
        void reset(StreamId, uint32_t)
        void pull(size_t, vector[Slice] *)
        cbool wants_write()
        cbool wants_read()
        void begin_drain()
        cbool finished()
        size_t open_streams()
        uint64_t resets_received()

    cdef cppclass ClientConfig:
        string authority
        string user_agent
        size_t message_bytes_max
        uint32_t connection_window_bytes
        uint32_t stream_window_bytes
        uint32_t frame_bytes_max
        Compression compression
        cbool encrypted
        ByteBudgetCpp *budget

    cdef cppclass ClientSessionCpp "infersched::http2::ClientSession":
        ClientSessionCpp(const ClientConfig &)
        cbool feed(Span, Nanos)
        Space receive_space()
        cbool next_event(EventCpp *)
        cbool has_events()
        void connection_lost()
        StreamId call(string_view, Nanos, string_view, Pieces)
        void cancel(StreamId)
        StreamId open_stream(string_view, Nanos, string_view)
        void send(StreamId, Pieces)
        void half_close(StreamId)
        void consumed(StreamId, uint64_t)
        uint64_t unsent_bytes(StreamId)
        cbool ready()
        cbool draining()
        StreamId forward_open(const Headers &, cbool)
        void forward_data(StreamId, const BufferRef &, Span, cbool)
        void forward_consumed(StreamId, uint64_t)
        void reset(StreamId, uint32_t)
        void pull(size_t, vector[Slice] *)
        cbool wants_write()
        cbool finished()
        size_t open_streams()


cdef extern from "http2/loopback.h" namespace "infersched::http2" nogil:
    cdef cppclass LoopbackLoad:
        uint64_t requests
        size_t in_flight
        size_t request_bytes
        size_t reply_bytes

    cdef cppclass LoopbackResult:
        uint64_t answered
        uint64_t server_bytes
        uint64_t client_bytes
        uint64_t server_ticks
        uint64_t total_ticks

    LoopbackResult run_loopback(const LoopbackLoad &, uint64_t (*)() noexcept nogil)


cdef extern from "<utility>" namespace "std" nogil:
    Pieces move(Pieces)
