"""C++ declarations of csrc/kserve that the binding uses."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        string_view()
        string_view(const char *, size_t)
        const char *data()
        size_t size()


cdef extern from "base/status.h" namespace "infersched" nogil:
    cdef enum class StatusCode(uint8_t):
        kOk

    cdef cppclass Status:
        StatusCode code
        string message
        cbool ok()


cdef extern from "base/bytes.h" namespace "infersched" nogil:
    cdef cppclass Span:
        const uint8_t *data
        size_t size

    cdef cppclass Buffer:
        cbool reserve(size_t)
        cbool append(const void *, size_t)
        size_t size()

    cdef cppclass BufferRef:
        BufferRef()
        @staticmethod
        BufferRef make()
        Buffer *get()
        Span span()

    cdef cppclass Pieces:
        size_t size()
        size_t count()
        Span piece(size_t)
        void clear()


cdef extern from "kserve/schema.h" namespace "infersched::kserve" nogil:
    cdef enum class DataType(uint8_t):
        kInvalid

    DataType parse_data_type(string_view text)

    cdef cppclass Padding:
        uint32_t axis
        vector[int64_t] buckets
        string value
        string mask_input
        string length_input

    cdef cppclass TensorSchema:
        string name
        DataType data_type
        vector[int64_t] dims
        cbool optional
        cbool shape_tensor
        cbool ragged
        Padding padding
        string trim_to
        uint32_t trim_axis

    cdef cppclass CModelSchema "infersched::kserve::ModelSchema":
        string name
        string version
        int64_t max_batch_size
        int64_t rows_max
        cbool merge
        cbool decoupled
        cbool sequence
        vector[TensorSchema] inputs
        vector[TensorSchema] outputs


cdef extern from "kserve/codec.h" namespace "infersched::kserve" nogil:
    cdef cppclass SignatureTable:
        size_t size()

    cdef cppclass SchedulingParameters:
        uint64_t priority
        int64_t timeout_us
        cbool has_sequence
        uint64_t sequence
        cbool sequence_start
        cbool sequence_end
        cbool wants_empty_final

    cdef cppclass CPreparedRequest "infersched::kserve::PreparedRequest":
        uint32_t rows()
        uint64_t row_bytes()
        size_t bytes()
        cbool mergeable()
        const SchedulingParameters &scheduling()
        string_view id()
        string_view sequence_text()
        const vector[string_view] &regions()

    cdef cppclass ModelName:
        string_view name
        string_view version
        string_view id

    cbool c_peek_model "infersched::kserve::peek_model"(Span, ModelName *)

    cdef cppclass RequestReader:
        RequestReader(SignatureTable *)
        Status prepare(const BufferRef &, const CModelSchema &, string_view, CPreparedRequest *)
        Status prepare(
            const BufferRef &, const CModelSchema &, string_view, CPreparedRequest *, size_t
        )

    cdef cppclass RequestRows:
        const CPreparedRequest *request
        uint32_t row_begin
        uint32_t rows

    void merge_requests(const RequestRows *, size_t, uint32_t, Pieces *)

    cdef cppclass CReply "infersched::kserve::Reply":
        cbool read(const BufferRef &, string *)
        cbool splits_into(uint32_t, string *)

    cdef cppclass ReplyRows:
        const CReply *reply
        uint32_t row_begin
        uint32_t rows

    cbool c_write_reply "infersched::kserve::write_reply"(
        const CPreparedRequest &, const ReplyRows *, size_t, cbool, Pieces *, string *
    )

    void c_write_stream_request "infersched::kserve::write_stream_request"(
        const CPreparedRequest &, string_view, cbool, Pieces *
    )

    cdef cppclass CStreamReply "infersched::kserve::StreamReply":
        string_view error_message
        string_view id
        Span response
        cbool final
        cbool empty

    cbool c_read_stream_reply "infersched::kserve::read_stream_reply"(
        const BufferRef &, CStreamReply *, string *
    )
    void c_write_stream_reply "infersched::kserve::write_stream_reply"(
        const CStreamReply &, string_view, string_view, Pieces *
    )
    void c_wrap_stream_reply "infersched::kserve::wrap_stream_reply"(Pieces *)
    void c_write_stream_error "infersched::kserve::write_stream_error"(
        string_view, string_view, Pieces *
    )
    void c_write_stream_failure "infersched::kserve::write_stream_failure"(
        const CPreparedRequest &, string_view, Pieces *
    )


cdef extern from *:
    """
    // A signature is opaque, so Cython cannot hold a reference to one.
    static std::uint64_t signature_id_of(const infersched::kserve::PreparedRequest &request) {
        return infersched::kserve::signature_id(*request.signature());
    }
    """
    uint64_t signature_id_of(const CPreparedRequest &) nogil
