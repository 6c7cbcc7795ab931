"""The wire codec (csrc/kserve) for tests and benchmarks; the data plane calls it from C++."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport SIZE_MAX
from libc.string cimport memcpy


class CodecError(Exception):
    """A request that is refused: `code` is the gRPC status code, `text` its message."""

    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code
        self.text = text


cdef BufferRef _buffer_of(bytes message) except *:
    # Exactly as large as the message, so that a sanitizer sees a read past its end.
    cdef BufferRef buffer = BufferRef.make()
    cdef size_t size = len(message)
    if not buffer.get().reserve(size) or not buffer.get().append(PyBytes_AS_STRING(message), size):
        raise MemoryError
    return buffer


cdef bytes _bytes_of(Pieces *pieces):
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, pieces.size())
    cdef char *at = PyBytes_AS_STRING(joined)
    cdef size_t i
    cdef Span piece
    for i in range(pieces.count()):
        piece = pieces.piece(i)
        memcpy(at, piece.data, piece.size)
        at += piece.size
    return joined


cdef bytes _view_bytes(string_view view):
    return view.data()[:view.size()] if view.size() else b""


cdef class ModelSchema:
    """What the codec knows of a model. Tensors are added in the model's order."""

    cdef CModelSchema _schema

    def __init__(self, str name, str version="1", *, max_batch_size=0, rows_max=0, merge=True,
                 decoupled=False, sequence=False):
        self._schema.name = name.encode()
        self._schema.version = version.encode()
        self._schema.max_batch_size = max_batch_size
        self._schema.rows_max = rows_max
        self._schema.merge = merge
        self._schema.decoupled = decoupled
        self._schema.sequence = sequence

    @staticmethod
    cdef TensorSchema _tensor(name, datatype, dims, optional, shape_tensor, ragged) except *:
        cdef TensorSchema tensor
        cdef bytes text = datatype.encode()
        tensor.name = name.encode()
        tensor.data_type = parse_data_type(string_view(PyBytes_AS_STRING(text), len(text)))
        if tensor.data_type == DataType.kInvalid:
            raise ValueError(f"no such datatype: {datatype!r}")
        tensor.dims = dims
        tensor.optional = optional
        tensor.shape_tensor = shape_tensor
        tensor.ragged = ragged
        return tensor

    def add_input(self, str name, str datatype, dims, *, optional=False, shape_tensor=False,
                  ragged=False, buckets=(), axis=0, value=b"", mask="", length=""):
        """Adds an input; `dims` without the batch dimension, -1 = variable. Returns self.

        `buckets` (ascending) switch padding of `axis` on, by `value` (the bytes of one element);
        `mask` and `length` name the inputs that are then filled in.
        """
        cdef TensorSchema tensor = ModelSchema._tensor(
            name, datatype, dims, optional, shape_tensor, ragged
        )
        tensor.padding.axis = axis
        tensor.padding.buckets = buckets
        tensor.padding.value = value
        tensor.padding.mask_input = mask.encode()
        tensor.padding.length_input = length.encode()
        self._schema.inputs.push_back(tensor)
        return self

    def add_output(self, str name, str datatype, dims, *, trim_to="", trim_axis=0):
        """Adds an output; `dims` without the batch dimension, -1 = variable. Returns self.

        `trim_axis` is cut back to the length of the padded input `trim_to`.
        """
        cdef TensorSchema tensor = ModelSchema._tensor(name, datatype, dims, False, False, False)
        tensor.trim_to = trim_to.encode()
        tensor.trim_axis = trim_axis
        self._schema.outputs.push_back(tensor)
        return self


cdef class PreparedRequest:
    """A request that passed all checks. Made by Codec.prepare."""

    cdef CPreparedRequest _request

    @property
    def rows(self):
        return self._request.rows()

    @property
    def row_bytes(self):
        """Of the inputs of a row; 0: the model's rows are all alike."""
        return self._request.row_bytes()

    @property
    def bytes(self):
        return self._request.bytes()

    @property
    def mergeable(self):
        return self._request.mergeable()

    @property
    def priority(self):
        return self._request.scheduling().priority

    @property
    def timeout_us(self):
        return self._request.scheduling().timeout_us

    @property
    def has_sequence(self):
        return self._request.scheduling().has_sequence

    @property
    def sequence(self):
        return self._request.scheduling().sequence

    @property
    def sequence_start(self):
        return self._request.scheduling().sequence_start

    @property
    def sequence_end(self):
        return self._request.scheduling().sequence_end

    @property
    def wants_empty_final(self):
        return self._request.scheduling().wants_empty_final

    @property
    def sequence_text(self):
        return _view_bytes(self._request.sequence_text())

    @property
    def regions(self):
        cdef size_t i
        return [
            _view_bytes(self._request.regions()[i]) for i in range(self._request.regions().size())
        ]

    @property
    def signature_id(self):
        return signature_id_of(self._request)

    @property
    def id(self):
        return _view_bytes(self._request.id())


cdef class Codec:
    """Reads requests; interns their signatures."""

    cdef SignatureTable _signatures
    cdef RequestReader *_reader

    def __cinit__(self):
        self._reader = new RequestReader(&self._signatures)

    def __dealloc__(self):
        del self._reader

    @property
    def signature_count(self):
        """Signatures held, in use or not yet dropped."""
        return self._signatures.size()

    def prepare(self, bytes message, ModelSchema schema not None, bytes metadata=b"",
                size_t converted_bytes_max=SIZE_MAX):
        """Scans and checks one ModelInferRequest. Raises CodecError when it is refused."""
        cdef PreparedRequest request = PreparedRequest.__new__(PreparedRequest)
        cdef BufferRef buffer = _buffer_of(message)
        cdef string_view extra = string_view(PyBytes_AS_STRING(metadata), len(metadata))
        cdef Status status = self._reader.prepare(
            buffer, schema._schema, extra, &request._request, converted_bytes_max
        )
        if not status.ok():
            raise CodecError(<int>status.code, status.message.decode("utf-8", "replace"))
        return request

    def repeat_prepare(self, bytes message, ModelSchema schema not None, size_t count):
        """Prepares and drops the same request `count` times. Returns the rows seen."""
        cdef BufferRef buffer = _buffer_of(message)
        cdef CPreparedRequest request
        cdef ModelName name
        cdef size_t _i
        cdef uint64_t rows = 0
        with nogil:
            for _i in range(count):
                if c_peek_model(buffer.span(), &name):
                    self._reader.prepare(buffer, schema._schema, string_view(), &request)
                    rows += request.rows()
        return rows


def peek_model(bytes message):
    """(name, version, id) of a ModelInferRequest, None when it is not one."""
    cdef ModelName name
    cdef Span span
    span.data = <const uint8_t *>PyBytes_AS_STRING(message)
    span.size = len(message)
    if not c_peek_model(span, &name):
        return None
    return _view_bytes(name.name), _view_bytes(name.version), _view_bytes(name.id)


cdef vector[RequestRows] _request_rows(parts) except *:
    cdef vector[RequestRows] rows
    cdef RequestRows part
    cdef PreparedRequest request
    for request, row_begin, count in parts:
        if row_begin < 0 or count < 0 or row_begin + count > request._request.rows():
            raise IndexError(f"rows [{row_begin}, {row_begin + count}) of {request.rows}")
        part.request = &request._request
        part.row_begin = row_begin
        part.rows = count
        rows.push_back(part)
    return rows


def merge(parts, uint32_t rows_padded=0):
    """The ModelInferRequest of the given (request, row_begin, rows), all of one signature."""
    cdef vector[RequestRows] rows = _request_rows(parts)
    cdef Pieces message
    merge_requests(rows.data(), rows.size(), rows_padded, &message)
    return _bytes_of(&message)


def repeat_merge(parts, size_t count):
    """Merges the same parts `count` times. Returns the bytes written."""
    cdef vector[RequestRows] rows = _request_rows(parts)
    cdef Pieces message
    cdef size_t _i
    cdef uint64_t written = 0
    with nogil:
        for _i in range(count):
            message.clear()
            merge_requests(rows.data(), rows.size(), 0, &message)
            written += message.size()
    return written


cdef class Reply:
    """A ModelInferResponse. Raises ValueError when it is malformed."""

    cdef CReply _reply

    def __init__(self, bytes message):
        cdef string error
        cdef BufferRef buffer = _buffer_of(message)
        if not self._reply.read(buffer, &error):
            raise ValueError(error.decode())

    def splits_into(self, uint32_t rows):
        """Prepares for cutting into `rows` rows. Raises ValueError when that cannot be."""
        cdef string error
        if not self._reply.splits_into(rows, &error):
            raise ValueError(error.decode("utf-8", "replace"))


cdef vector[ReplyRows] _reply_rows(parts) except *:
    cdef vector[ReplyRows] rows
    cdef ReplyRows part
    cdef Reply reply
    for reply, row_begin, count in parts:
        part.reply = &reply._reply
        part.row_begin = row_begin
        part.rows = count
        rows.push_back(part)
    return rows


def write_reply(PreparedRequest request not None, parts, *, whole=False):
    """The ModelInferResponse of `request` from its (reply, row_begin, rows).

    Raises ValueError when the parts do not fit together.
    """
    cdef vector[ReplyRows] rows = _reply_rows(parts)
    cdef Pieces message
    cdef string error
    if not c_write_reply(request._request, rows.data(), rows.size(), whole, &message, &error):
        raise ValueError(error.decode("utf-8", "replace"))
    return _bytes_of(&message)


def repeat_split(bytes message, PreparedRequest request not None, uint32_t members, size_t count):
    """Reads a reply of `members` one-row members and answers each, `count` times.

    Returns the bytes written. Raises ValueError when the reply cannot be cut so.
    """
    cdef BufferRef buffer = _buffer_of(message)
    cdef Pieces answer
    cdef string error
    cdef CReply reply
    cdef ReplyRows part
    cdef size_t _i
    cdef uint32_t row
    cdef uint64_t written = 0
    cdef cbool fine = True
    with nogil:
        for _i in range(count):
            fine = fine and reply.read(buffer, &error) and reply.splits_into(members, &error)
            for row in range(members):
                if not fine:
                    break
                answer.clear()
                part.reply = &reply
                part.row_begin = row
                part.rows = 1
                fine = c_write_reply(request._request, &part, 1, False, &answer, &error)
                written += answer.size()
    if not fine:
        raise ValueError(error.decode("utf-8", "replace"))
    return written


cdef string_view _view_of(bytes text):
    return string_view(PyBytes_AS_STRING(text), len(text))


def write_stream_request(PreparedRequest request not None, bytes id, *, empty_final=False):
    """The ModelInferRequest that goes over a stream of the backend under the name `id`."""
    cdef Pieces message
    c_write_stream_request(request._request, _view_of(id), empty_final, &message)
    return _bytes_of(&message)


cdef class StreamReply:
    """A ModelStreamInferResponse. Raises ValueError when it is malformed."""

    cdef CStreamReply _reply

    def __init__(self, bytes message):
        cdef string error
        if not c_read_stream_reply(_buffer_of(message), &self._reply, &error):
            raise ValueError(error.decode())

    @property
    def error_message(self):
        return _view_bytes(self._reply.error_message)

    @property
    def id(self):
        return _view_bytes(self._reply.id)

    @property
    def response(self):
        cdef Span span = self._reply.response
        return (<const char *>span.data)[:span.size] if span.data != NULL else None

    @property
    def final(self):
        return self._reply.final

    @property
    def empty(self):
        return self._reply.empty


def write_stream_reply(StreamReply reply not None, bytes our_id, bytes id):
    """The reply with the client's id."""
    cdef Pieces message
    c_write_stream_reply(reply._reply, _view_of(our_id), _view_of(id), &message)
    return _bytes_of(&message)


def wrap_stream_reply(PreparedRequest request not None, parts, *, whole=False):
    """write_reply() as a message of the stream."""
    cdef vector[ReplyRows] rows = _reply_rows(parts)
    cdef Pieces message
    cdef string error
    if not c_write_reply(request._request, rows.data(), rows.size(), whole, &message, &error):
        raise ValueError(error.decode("utf-8", "replace"))
    c_wrap_stream_reply(&message)
    return _bytes_of(&message)


def write_stream_error(bytes text, bytes id):
    """The reply to a refused request."""
    cdef Pieces message
    c_write_stream_error(_view_of(text), _view_of(id), &message)
    return _bytes_of(&message)


def write_stream_failure(PreparedRequest request not None, bytes text):
    """The reply to a request whose execution failed."""
    cdef Pieces message
    c_write_stream_failure(request._request, _view_of(text), &message)
    return _bytes_of(&message)
