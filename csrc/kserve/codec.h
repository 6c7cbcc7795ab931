// The codec's public face: a ModelInferRequest on the wire becomes a PreparedRequest, several of
// them become one merged request, and one reply becomes the replies of its members.
//
//     prepare_request   one pass over the bytes, checks with Triton's wording, signature
//     merge_requests    one small new header, tensor bytes by reference
//     read_reply        one pass over the bytes of a ModelInferResponse
//     write_reply       rows of one or several replies -> the reply of one member
//
// Nothing here knows queues, connections or time. Malformed input is an error value, never a crash
// and never a read outside the message. The fields are those of KServe's
// grpc_predict_v2.proto as Triton has it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "kserve/schema.h"
#include "kserve/shared_tensors.h"

namespace infersched::kserve {

// Everything that must agree for two requests to share a batch: model, version, input names,
// dtypes, shapes without dimension 0, parameters other than id, priority and timeout, and forwarded
// metadata. Interned: equal content has the same address and the same id as long as any request
// holds it.
class Signature;
using SignatureRef = std::shared_ptr<const Signature>;
std::uint64_t signature_id(const Signature& signature);  // never 0, never used again

// Interns signatures. Holds weak knowledge only: an unused signature costs nothing for long.
class SignatureTable {
  public:
    SignatureTable();
    ~SignatureTable();
    std::size_t size() const;

  private:
    friend class RequestReader;
    struct State;
    std::unique_ptr<State> state_;
};

// Triton's scheduling parameters, consumed here and not forwarded.
struct SchedulingParameters {
    std::uint64_t priority = 0;   // 0 = the model's default level, 1 = highest
    std::int64_t timeout_us = 0;  // budget of the whole request; 0 = none
    bool has_sequence = false;    // sequence_id, sequence_start or sequence_end, whatever they say
    // Key of the correlation id (integer or string); 0: no sequence, as the ids 0 and "" say. Two
    // ids share a key with the probability of a 64-bit hash collision.
    std::uint64_t sequence = 0;
    bool sequence_start = false;
    bool sequence_end = false;
    bool wants_empty_final = false;  // triton_enable_empty_final_response
};

// A request that passed all checks. Owns (a share of) its message; movable; freed when answered.
class PreparedRequest {
  public:
    PreparedRequest();
    ~PreparedRequest();
    PreparedRequest(PreparedRequest&&) noexcept;
    PreparedRequest& operator=(PreparedRequest&&) noexcept;

    // First dimension of the batched inputs; 1 for a model without batch dimension, and for a
    // request of zero rows, which Triton runs as one without batch dimension.
    std::uint32_t rows() const;
    // Of the inputs of a row, in a batch with their padding, those of BYTES left out. 0: the
    // model's rows are all alike.
    std::uint64_t row_bytes() const;
    // Bytes held until it is answered.
    std::size_t bytes() const;
    // False: must be dispatched alone (no batch dimension, decoupled, sequence, shared memory,
    // shape or ragged tensors, zero rows). Such a request is forwarded unchanged but for id and
    // consumed parameters.
    bool mergeable() const;
    const SchedulingParameters& scheduling() const;
    const SignatureRef& signature() const;
    std::string_view id() const;        // up to a NUL
    std::string_view whole_id() const;  // as sent
    // The correlation id as error texts show it; empty: no sequence.
    std::string_view sequence_text() const;
    // Names of the shared-memory regions of its inputs and outputs, each once; usually none.
    const std::vector<std::string_view>& regions() const;

  private:
    friend class RequestReader;
    friend struct RequestAccess;
    struct State;
    State* state_ = nullptr;  // from a free list; empty after a move
};

// Finds the model a message asks for, so that the caller can look up its schema. Reads only the
// names. False: the message is not a ModelInferRequest at all.
struct ModelName {
    // Up to a NUL, as in texts and replies.
    std::string_view name;
    std::string_view version;  // as sent; empty = the model's default
    bool version_cut = false;  // at a NUL
    std::string_view id;
    // As sent, as failures on a stream show them.
    std::string_view whole_name;
    std::string_view whole_version;
    std::string_view whole_id;
};
[[nodiscard]] bool peek_model(Span message, ModelName* name);

// Scans and checks. Keeps its scratch memory between requests; one per thread is enough.
class RequestReader {
  public:
    explicit RequestReader(SignatureTable* signatures);
    ~RequestReader();

    // Whether `message` is a ModelInferRequest throughout, of whatever model.
    bool decodes(Span message);
    // The `timeout` parameter of the message that was decoded last; 0: none.
    std::int64_t decoded_timeout_us() const;
    // `message` holds exactly one ModelInferRequest. `metadata` is the canonical form of the
    // forwarded headers (part of the signature, opaque here). On an error the request is unchanged;
    // the texts are Triton's. Typed contents that take more than `converted_bytes_max` as raw
    // bytes, which may be eight times their own, are refused by RESOURCE_EXHAUSTED; nothing else
    // is.
    Status prepare(const BufferRef& message, const ModelSchema& schema, std::string_view metadata,
                   PreparedRequest* request, std::size_t converted_bytes_max = SIZE_MAX);

  private:
    struct Scratch;
    SignatureTable* signatures_;
    std::unique_ptr<Scratch> scratch_;
};

// Rows [row_begin, row_begin + rows) of a request.
struct RequestRows {
    const PreparedRequest* request;
    std::uint32_t row_begin;
    std::uint32_t rows;
};

// Writes one ModelInferRequest holding all `parts` in order, all of one signature; requested
// outputs are the union (all outputs when any part asks for all). A single whole request keeps its
// id; a merged one has none. `rows_padded` > the sum of rows repeats the last row (mandatory batch
// sizes). Tensors that `shared` gives a place are named by it; not for unmergeable requests.
void merge_requests(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded,
                    Pieces* message, const SharedTensors* shared = nullptr);

// A ModelInferResponse read once, kept until all members are answered.
class Reply {
  public:
    Reply();
    ~Reply();
    Reply(Reply&&) noexcept;
    Reply& operator=(Reply&&) noexcept;

    // False when the message is malformed; `error` then says how.
    bool read(const BufferRef& message, std::string* error);
    // Whether every output can be cut into `rows` rows (its first dimension is `rows` and its bytes
    // agree).
    bool splits_into(std::uint32_t rows, std::string* error);
    // The data of the output `name`, which the message has not, begin where those of `block` do.
    // False: they cannot, the block is too small for its shape or the datatype has no fixed size.
    bool place(std::string_view name, const BufferRef& block, std::string* error);

  private:
    friend struct ReplyAccess;
    struct State;
    State* state_ = nullptr;  // from a free list; empty after a move
};

struct ReplyRows {
    const Reply* reply;
    std::uint32_t row_begin;
    std::uint32_t rows;
};

// Writes the ModelInferResponse of one member from the rows it has in one reply (or in several, in
// order, when the request was larger than a batch): its id, its requested outputs, its rows.
// `whole` = the reply answers this request alone and unsplit: bytes pass through but for the id.
// False with `error` when the parts disagree (other outputs, dtypes or shapes[1:]).
bool write_reply(const PreparedRequest& request, const ReplyRows* parts, std::size_t count,
                 bool whole, Pieces* message, std::string* error);

// -- ModelStreamInfer ----------------------------------------------------------------------------

// The request alone, as it goes over a stream of the backend, where replies are told apart by their
// id: `id` stands for the client's. Priority and sequence parameters stay; an empty final response
// is asked for when `empty_final`.
void write_stream_request(const PreparedRequest& request, std::string_view id, bool empty_final,
                          Pieces* message);

// One ModelStreamInferResponse of a backend. Views point into the message.
struct StreamReply {
    BufferRef message;
    std::string_view error_message;  // empty: a response
    std::string_view id;
    Span id_field;       // of the response: where the id stands, with its tag
    Span response;       // the ModelInferResponse
    bool final = false;  // triton_final_response is true; a refusal, which lacks it, is final, too
    bool empty = false;  // no outputs: only says that the last response was the last
};
// False when the message is malformed; `error` then says how.
bool read_stream_reply(const BufferRef& message, StreamReply* reply, std::string* error);
// The same reply with the client's id; bytes pass through but for that. In an error text
// "[request id: <ours>]" becomes the client's. Errors and empty final responses show the whole id.
void write_stream_reply(const StreamReply& reply, std::string_view our_id,
                        std::string_view whole_id, Pieces* message);
// Makes a ModelInferResponse (as write_reply() gives it) a message of the stream: wrapped, with
// triton_final_response true.
void wrap_stream_reply(Pieces* message);
// A request of a stream that was refused: error_message, and the id where Triton has it.
void write_stream_error(std::string_view text, std::string_view id, Pieces* message);
// A request of a stream whose execution failed; Triton then names its model, too, and says
// triton_final_response true.
void write_stream_failure(const PreparedRequest& request, std::string_view text, Pieces* message);

}  // namespace infersched::kserve
