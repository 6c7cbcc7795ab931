// Step 3 of a turn: the engine's actions are carried out; and what became of the batches.
#include <algorithm>
#include <cassert>

#include "gateway/out_of_memory.h"
#include "gateway/state.h"
#include "gateway/triton_texts.h"

namespace infersched::gateway {

namespace {

// What waits to be sent of large messages holds up what comes after it on the same connection.
constexpr std::uint64_t kHoldUpBytes = 256u << 10;

// What a backend ends so shortly before a deadline, it ends at the deadline: its timers are coarse,
// and grpc-timeout is rounded.
constexpr Nanos kDeadlineSlackNs = 5 * kMillisecond;

constexpr std::string_view kModelInfer = "/inference.GRPCInferenceService/ModelInfer";

// Triton ends the call at the deadline that it was told, with one code or another, while an
// execution that has started goes on: the slot is not free then.
bool ended_at_deadline(const BatchRecord& batch, const Status& status, Nanos now) {
    return status.code != StatusCode::kUnavailable && batch.deadline != kNever &&
           now + kDeadlineSlackNs >= batch.deadline;
}

// Whatever a backend answered to a batch may be meant for one of its members only.
engine::FailureKind failure_kind(const Status& status, CallEnd end) {
    if (end == CallEnd::kNothingRan) return engine::FailureKind::kNothingRan;
    if (end == CallEnd::kReset) return engine::FailureKind::kReset;
    if (says_out_of_memory(status)) return engine::FailureKind::kOutOfMemory;
    if (status.code == StatusCode::kDeadlineExceeded) return engine::FailureKind::kFinal;
    const bool unavailable = status.code == StatusCode::kUnavailable;
    if (end == CallEnd::kLost || (end == CallEnd::kUnreadable && unavailable))
        return engine::FailureKind::kConnection;
    if (unavailable) return engine::FailureKind::kUnavailable;
    if (end == CallEnd::kAnswered || status.code == StatusCode::kInternal)
        return engine::FailureKind::kRejected;
    return engine::FailureKind::kFinal;
}

// The reply to one unpadded request in one piece passes through as it is.
bool passes_through(const BatchRecord& batch, const RequestRecord& request) {
    return batch.members.size() == 1 && batch.rows_padded == batch.rows &&
           batch.members[0].row_begin == 0 && batch.members[0].rows == request.prepared.rows();
}

// Of two connections to a backend, whether a call is better made on `a`.
bool is_freer(const http2::ClientSession& a, const http2::ClientSession& b) {
    if (a.ready() != b.ready()) return a.ready();
    const std::uint64_t a_held_up = a.unsent_bytes() / kHoldUpBytes;
    const std::uint64_t b_held_up = b.unsent_bytes() / kHoldUpBytes;
    if (a_held_up != b_held_up) return a_held_up < b_held_up;
    return a.open_streams() < b.open_streams();
}

}  // namespace

void Gateway::State::carry_out_actions(Nanos now) {
    // Carrying out may add actions (a dispatch that fails at once), and the lists may move.
    for (std::size_t i = 0; i < engine.actions().size(); ++i) {
        const engine::Action action = engine.actions()[i];
        switch (action.kind) {
            case engine::ActionKind::kDispatch:
                dispatch(action, now);
                break;
            case engine::ActionKind::kAnswer:
                answer(action, now);
                break;
            case engine::ActionKind::kAbandon:
                abandon(action, now);
                break;
            case engine::ActionKind::kWake:
                engine_wake = action.at;
                break;
        }
    }
    retire_used_streams(now);
    engine.clear_actions();
}

// The batch could not be sent; the engine places its members again in the next turn.
void Gateway::State::dispatch_unsent(const engine::Action& action, Nanos now) {
    engine.dispatch_failed(action.batch, engine::FailureKind::kNothingRan, StatusCode::kUnavailable,
                           now);
}

BatchId Gateway::State::open_batch(const engine::Action& action, ConnectionId id,
                                   Connection* connection, Nanos now) {
    const BatchId batch_id = batches.emplace();
    BatchRecord* batch = batches.find(batch_id);
    batch->handle = action.batch;
    batch->model = action.model;
    batch->backend = action.backend;
    batch->connection = id;
    batch->rows = action.rows;
    batch->rows_padded = action.rows_padded;
    batch->memory_limited = action.memory_limited;
    batch->dispatched_at = now;
    const auto first = engine.members().begin() + action.member_begin;
    batch->members.assign(first, first + action.member_count);
    const auto slot = static_cast<std::uint32_t>(action.batch);
    if (slot >= batch_of_slot.size()) batch_of_slot.resize(slot + 1);
    batch_of_slot[slot] = batch_id;
    // Silence counts from the moment when there is something to hear.
    if (!connection->has_work_out()) {
        connection->received_at = now;
        probe_at = std::min(probe_at, now + kProbePeriodNs);
    }
    connections.mark_dirty(id, connection);
    ++backends[action.backend].inflight_batches;
    backends[action.backend].inflight_rows += action.rows;
    return batch_id;
}

void Gateway::State::dispatch(const engine::Action& action, Nanos now) {
    const engine::BatchMember* members = engine.members().data() + action.member_begin;
    if (RequestRecord* request = requests.find(members->user); request->streamed) {
        dispatch_streamed(action, request, now);
        return;
    }
    ConnectionId id = 0;
    Connection* connection = choose_connection(action.backend, &id);
    if (connection == nullptr) {
        dispatch_unsent(action, now);
        return;
    }
    merge_scratch.clear();
    std::string_view metadata;
    for (std::uint32_t i = 0; i < action.member_count; ++i) {
        const engine::BatchMember& member = members[i];
        const RequestRecord* request = requests.find(member.user);
        assert(request != nullptr);  // the engine dispatches only what waits for an answer
        merge_scratch.push_back({&request->prepared, member.row_begin, member.rows});
        metadata = text_of(request->metadata);
    }
    kserve::SharedTensors tensors;
    std::unique_ptr<SharedBatch> shared = share_tensors(action, &tensors);
    Pieces message;
    kserve::merge_requests(merge_scratch.data(), merge_scratch.size(), action.rows_padded, &message,
                           shared ? &tensors : nullptr);
    // A call with memory of ours is never given up: its end says when the memory is free.
    const Nanos deadline = shared ? kNever : action.at;
    const Nanos timeout_ns = deadline == kNever ? kNever : std::max<Nanos>(deadline - now, 1);
    const http2::StreamId stream =
        connection->client->call(kModelInfer, timeout_ns, metadata, std::move(message));
    if (stream == 0) {
        if (shared) uncharge(shared.get());
        dispatch_unsent(action, now);
        return;
    }
    const BatchId batch_id = open_batch(action, id, connection, now);
    BatchRecord* batch = batches.find(batch_id);
    batch->stream = stream;
    batch->deadline = deadline;
    batch->shared = std::move(shared);
    stay_awake(*batch, now);
    connection->requests.insert(stream, batch_id);
}

Connection* Gateway::State::choose_connection(std::uint32_t backend, ConnectionId* id) {
    if (backend >= backends.size()) return nullptr;
    Backend& entry = backends[backend];
    Connection* best = nullptr;
    const std::size_t count = entry.connections.size();
    for (std::size_t i = 0; i < count; ++i) {
        const ConnectionId candidate = entry.connections[(entry.next_connection + i) % count];
        Connection* connection = connections.find(candidate);
        if (connection == nullptr || !connection->usable()) continue;
        if (best != nullptr && !is_freer(*connection->client, *best->client)) continue;
        best = connection;
        *id = candidate;
    }
    ++entry.next_connection;
    return best;
}

// The engine has taken the batch back already.
void Gateway::State::abandon(const engine::Action& action, Nanos now) {
    const auto slot = static_cast<std::uint32_t>(action.batch);
    const BatchId found = slot < batch_of_slot.size() ? batch_of_slot[slot] : 0;
    BatchRecord* batch = batches.find(found);
    if (batch == nullptr || batch->handle != action.batch) return;
    if (batch->backend_stream != 0) {
        // Its stream has others on it: what still comes for it is dropped.
        const BatchRecord closed = std::move(*batch);
        leave_backend_stream(closed);
        close_batch(found, batch);
        return;
    }
    if (batch->shared) lose_shared_call(batch->backend, std::move(batch->shared), now);
    if (Connection* connection = connections.find(batch->connection)) {
        connection->requests.take(batch->stream);
        connection->client->cancel(batch->stream);
        connections.mark_dirty(batch->connection, connection);
    }
    close_batch(found, batch);
}

// A lone request whose model was quick the last time is waited for without sleeping.
void Gateway::State::stay_awake(const BatchRecord& batch, Nanos now) {
    const Nanos expected_ns = batch.model < round_trip_ns.size() ? round_trip_ns[batch.model] : 0;
    const bool lone = batches.size() == 1 && batch.members.size() == 1;
    awake_until = lone && expected_ns > 0 && expected_ns < kAwakeMaxNs ? now + kAwakeMaxNs : 0;
}

void Gateway::State::close_batch(BatchId id, BatchRecord* batch) {
    awake_until = 0;
    if (batch->backend < backends.size()) {
        Backend& backend = backends[batch->backend];
        --backend.inflight_batches;
        backend.inflight_rows -= batch->rows;
    }
    batches.erase(id);
}

void Gateway::State::take_reply(Connection* connection, http2::Event* event, Nanos now) {
    const BatchId id = connection->requests.take(event->stream);
    BatchRecord* batch = batches.find(id);
    if (batch == nullptr) return;
    BatchRecord closed = std::move(*batch);
    if (closed.model >= round_trip_ns.size()) round_trip_ns.resize(closed.model + 1);
    round_trip_ns[closed.model] = now - closed.dispatched_at;
    close_batch(id, batch);
    if (closed.shared && !end_shared_call(&closed, *event, now)) return;
    if (!event->answer.empty()) note_metadata(closed, std::move(event->answer));
    if (event->status.ok() && event->message) {
        reply_arrived(closed, event->message, now);
    } else if (event->status.ok()) {
        reply_failed(closed, Status::error(StatusCode::kInternal, "backend sent no reply message"),
                     CallEnd::kAnswered, now);
    } else {
        const CallEnd end = call_end(*connection, *event);
        reply_failed(closed, std::move(event->status), end, now);
    }
}

CallEnd Gateway::State::call_end(const Connection& connection, const http2::Event& event) {
    if (event.nothing_ran) return CallEnd::kNothingRan;
    if (event.answered) return CallEnd::kAnswered;
    // A backend that goes may reset its streams before it closes the connection.
    if (event.lost || (event.reset && connection.client->draining())) return CallEnd::kLost;
    return event.reset ? CallEnd::kReset : CallEnd::kUnreadable;
}

void Gateway::State::reply_failed(const BatchRecord& batch, Status status, CallEnd end, Nanos now) {
    const ModelConfig* model = catalog.at(batch.model);
    if (end == CallEnd::kAnswered && model != nullptr) {
        const TritonSays says = triton_says(status, model->schema);
        if (says.word == TritonWord::kLeaving) mark_leaving(batch.model, batch.backend, now);
        if (says.word != TritonWord::kNone)
            end = says.may_have_run ? CallEnd::kLost : CallEnd::kNothingRan;
    }
    const bool stops = model == nullptr || model->policy.cancellable;
    engine::FailureKind kind = failure_kind(status, end);
    if (end != CallEnd::kNothingRan && ended_at_deadline(batch, status, now)) {
        // A backend that stops there may as well reset the stream: that is its answer.
        const bool reset = end == CallEnd::kReset || end == CallEnd::kLost;
        if (!stops) {
            kind = engine::FailureKind::kGivenUp;
        } else if (reset || kind == engine::FailureKind::kRejected) {
            kind = engine::FailureKind::kFinal;
        }
        if (!stops || reset || status.code == StatusCode::kDeadlineExceeded) {
            note_late(batch);
            engine.dispatch_failed(batch.handle, kind, StatusCode::kDeadlineExceeded, now);
            return;
        }
    }
    const StatusCode code = status.code;
    note_failure(batch, std::move(status));
    engine.dispatch_failed(batch.handle, kind, code, now);
}

// Metadata of the backend's answer goes to every member.
void Gateway::State::note_metadata(const BatchRecord& batch, http2::AnswerMetadata&& answer) {
    const auto metadata = std::make_shared<const http2::AnswerMetadata>(std::move(answer));
    for (const engine::BatchMember& member : batch.members)
        if (RequestRecord* request = requests.find(member.user))
            request->answer_metadata = metadata;
}

// Kept for the members that are not sent again.
void Gateway::State::note_failure(const BatchRecord& batch, Status status) {
    const auto failure = std::make_shared<const Status>(std::move(status));
    for (const engine::BatchMember& member : batch.members)
        if (RequestRecord* request = requests.find(member.user)) request->failure = failure;
}

void Gateway::State::note_late(const BatchRecord& batch) {
    for (const engine::BatchMember& member : batch.members)
        if (RequestRecord* request = requests.find(member.user))
            request->failure = std::make_shared<const Status>(
                Status::error(StatusCode::kDeadlineExceeded, late_text(request->late_by)));
}

void Gateway::State::reply_arrived(const BatchRecord& batch, const BufferRef& message, Nanos now) {
    const auto waits = [this](const engine::BatchMember& member) {
        return requests.find(member.user) != nullptr;
    };
    if (std::none_of(batch.members.begin(), batch.members.end(), waits)) {
        engine.complete(batch.handle, now);
        return;
    }
    const auto reply = std::make_shared<kserve::Reply>();
    std::string error;
    if (!reply->read(message, &error)) {
        reply_failed(
            batch, Status::error(StatusCode::kInternal, "malformed reply of the backend: " + error),
            CallEnd::kAnswered, now);
        return;
    }
    if (batch.shared && !place_outputs(batch, reply.get())) {
        engine.dispatch_failed(batch.handle, engine::FailureKind::kNothingRan,
                               StatusCode::kInternal, now);
        return;
    }
    bool whole = false;
    if (batch.members.size() == 1) {
        const RequestRecord* request = requests.find(batch.members[0].user);
        whole = request != nullptr && passes_through(batch, *request);
    }
    if (!whole && !reply->splits_into(batch.rows_padded, &error)) {
        const ModelConfig* model = catalog.at(batch.model);
        if (batch.members.size() > 1 && model != nullptr &&
            engine.queue_status(batch.model).merging)
            notices.push_back(
                {Notice::Kind::kMergingSwitchedOff, batch.backend, batch.model, false, 0, error});
        note_failure(batch, Status::error(StatusCode::kInternal,
                                          "the reply of the backend cannot be split: " + error));
        engine.dispatch_failed(batch.handle, engine::FailureKind::kUnsplittable,
                               StatusCode::kInternal, now);
        return;
    }
    std::uint32_t row = 0;
    for (const engine::BatchMember& member : batch.members) {
        if (RequestRecord* request = requests.find(member.user)) {
            ReplyPart part{reply, row, member.rows, member.row_begin, whole};
            if (!request->part.reply)
                request->part = std::move(part);
            else
                request->further_parts.push_back(std::move(part));
        }
        row += member.rows;
    }
    engine.complete(batch.handle, now);
}

}  // namespace infersched::gateway
