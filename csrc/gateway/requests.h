// The requests and batches in the house, by handle.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/slot_map.h"
#include "engine/engine.h"
#include "gateway/config.h"
#include "gateway/gateway.h"
#include "http2/session.h"
#include "kserve/codec.h"

namespace infersched::gateway {

using RequestId = std::uint64_t;
using BatchId = std::uint64_t;
using ClientStreamId = std::uint64_t;   // 0: a unary call
using BackendStreamId = std::uint64_t;  // 0: a unary call

// A text that many hold; null: an empty one.
using SharedText = std::shared_ptr<const std::string>;

inline SharedText shared_text(std::string&& text) {
    return text.empty() ? nullptr : std::make_shared<const std::string>(std::move(text));
}

inline std::string_view text_of(const SharedText& text) {
    return text == nullptr ? std::string_view() : std::string_view(*text);
}

// Rows of a backend's reply that belong to one request.
struct ReplyPart {
    std::shared_ptr<kserve::Reply> reply;
    std::uint32_t row_begin = 0;  // in the reply
    std::uint32_t rows = 0;
    std::uint32_t request_row_begin = 0;  // in the request
    bool whole = false;                   // the reply answers this request alone, unsplit
};

// What is the earliest of all that bounds a request's time. Clients know the words that gRPC has
// for the one and Triton for the other.
enum class LateBy : std::uint8_t {
    kCall,    // the deadline of its call
    kBudget,  // its `timeout`, or the model's objective
};

// An admitted request, from submit to answer.
struct RequestRecord {
    ConnectionId connection = 0;
    http2::StreamId stream = 0;
    std::uint32_t model = 0;
    engine::RequestHandle handle = 0;
    std::uint64_t bytes = 0;         // charged to the connection until the answer,
    std::uint64_t window_bytes = 0;  // and closed of its window
    std::uint64_t overhead = 0;      // charged to the budget besides: records, converted contents
    Nanos arrival = 0;
    Nanos call_deadline = kNever;
    LateBy late_by = LateBy::kBudget;
    kserve::PreparedRequest prepared;
    SharedText metadata;  // forwarded headers, canonical; of a message: its stream's
    // Of a message of a client's stream: that stream, where it stands in its list of requests, and
    // its place among the replies that leave in order.
    ClientStreamId client_stream = 0;
    std::uint32_t list_index = 0;
    std::uint64_t order = 0;
    bool ordered = false;                   // its one reply waits for those of earlier requests
    bool streamed = false;                  // goes to the backend as a message of a stream
    bool executed = true;                   // it was not the backend's checks that failed it
    Pieces stream_reply;                    // streamed: the message that ends it
    ReplyPart part;                         // the first part that came,
    std::vector<ReplyPart> further_parts;   // and those of a request larger than a batch
    std::shared_ptr<const Status> failure;  // what the backend said last
    std::shared_ptr<const http2::AnswerMetadata> answer_metadata;  // that came with it; often none
};

// What a batch has in shared memory, where the backend may read or write it until it has answered:
// as long as these are held, nobody else gets that memory.
struct SharedBatch {
    struct Output {
        std::string name;
        BufferRef block;
    };
    std::string address;  // of the backend, and
    std::string region;   // the region there, as they were when it was sent
    std::vector<BufferRef> inputs;
    std::vector<Output> outputs;
    std::uint64_t charged = 0;  // to the budget: what was not received
};

// A batch at a backend, from dispatch to reply.
struct BatchRecord {
    engine::BatchHandle handle = 0;
    std::uint32_t model = 0;
    std::uint32_t backend = 0;
    ConnectionId connection = 0;
    http2::StreamId stream = 0;
    std::uint32_t rows = 0;
    std::uint32_t rows_padded = 0;
    bool memory_limited = false;  // device memory kept it smaller
    Nanos dispatched_at = 0;
    Nanos deadline = kNever;  // as the backend was told; never on a stream
    std::vector<engine::BatchMember> members;
    std::unique_ptr<SharedBatch> shared;  // often none
    BackendStreamId backend_stream = 0;
    std::uint32_t list_index = 0;    // in the list of that stream
    std::uint32_t replies_sent = 0;  // passed on to the client before the last one
};

// How a call to a backend came to its status.
enum class CallEnd : std::uint8_t {
    kNothingRan,  // it was surely not executed
    kAnswered,    // the backend's own word
    kLost,        // with its connection, or cut off: it may have run
    kReset,       // its stream alone, by the backend or a proxy: it may have run
    kUnreadable,  // without a reply that can be read: another one would be no better
};

// Statuses for what the engine decided; table of the README.
// `tenant`: its name; empty for everybody else.
Status refusal_status(const engine::Admission& admission, std::string_view request_id,
                      std::string_view model, std::string_view tenant = {},
                      LateBy late_by = LateBy::kBudget);
Status answer_status(const engine::Action& action, const RequestRecord& request,
                     std::string_view model);
// The model is not loaded: it will be only after the deadline,
Status loading_status(std::string_view request_id, std::string_view model, Nanos predicted_ns,
                      Nanos budget_ns);
// or it cannot be loaded now.
Status load_failed_status(std::string_view request_id, const LoadableModel& model, Nanos now);
Status expired_in_queue_status(Nanos queued_ns, LateBy late_by);
std::string late_text(LateBy late_by);
// `[request id: ...] ` as Triton puts it before many texts.
std::string request_id_prefix(std::string_view request_id);

}  // namespace infersched::gateway
