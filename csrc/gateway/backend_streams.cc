// The backend's side of ModelStreamInfer: requests of decoupled and sequence models, one at a time
// out on a stream of their client stream, replies matched by our ids.
#include <algorithm>
#include <charconv>
#include <utility>

#include "gateway/state.h"
#include "gateway/triton_texts.h"

namespace infersched::gateway {

namespace {

constexpr std::string_view kModelStreamInfer = "/inference.GRPCInferenceService/ModelStreamInfer";

// The id of a batch on its stream: the handle in decimal.
struct StreamRequestId {
    explicit StreamRequestId(BatchId id) {
        end = std::to_chars(digits, digits + sizeof digits, id).ptr;
    }
    std::string_view text() const { return {digits, static_cast<std::size_t>(end - digits)}; }

    char digits[20];
    char* end;
};

BatchId parse_batch_id(std::string_view text) {
    BatchId id = 0;
    const char* const end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data(), end, id);
    return parsed.ec == std::errc() && parsed.ptr == end ? id : 0;
}

// A refusal names nothing but the id: the backend had not started to execute the request.
bool is_refusal(const kserve::StreamReply& reply) {
    return !reply.error_message.empty() && reply.response.size == reply.id_field.size;
}

// The error as a status, with the client's id in place of ours, which the reply has.
Status failure_status(const kserve::StreamReply& reply, std::string_view id,
                      StatusCode code = StatusCode::kInternal) {
    std::string text(reply.error_message);
    const std::string ours = request_id_prefix(reply.id);
    const std::size_t at = text.find(ours);
    if (at != std::string::npos) text.replace(at, ours.size(), request_id_prefix(id));
    return Status::error(code, std::move(text));
}

}  // namespace

void Gateway::State::dispatch_streamed(const engine::Action& action, RequestRecord* request,
                                       Nanos now) {
    const BackendStreamId stream_id =
        backend_stream_for(request->client_stream, action.backend, !request->ordered);
    BackendStream* stream = backend_streams.find(stream_id);
    if (stream == nullptr) {
        dispatch_unsent(action, now);
        return;
    }
    Connection* connection = connections.find(stream->connection);
    const BatchId batch_id = open_batch(action, stream->connection, connection, now);
    BatchRecord* batch = batches.find(batch_id);
    batch->stream = stream->stream;
    batch->backend_stream = stream_id;
    batch->list_index = static_cast<std::uint32_t>(stream->batches.size());
    stream->batches.push_back(batch_id);
    ++connection->streamed_batches;
    Pieces message;
    kserve::write_stream_request(request->prepared, StreamRequestId(batch_id).text(), true,
                                 &message);
    connection->client->send(stream->stream, std::move(message));
    stream->carried.add(batch->model);
    const bool last = stream->carried.full() || !takes_new(batch->model, stream->backend);
    if (last && !std::exchange(stream->retiring, true)) retiring_streams.push_back(stream_id);
}

bool Gateway::State::takes_new(std::uint32_t model, std::uint32_t backend) const {
    const ModelConfig* config = catalog.at(model);
    if (config == nullptr || !config->policy.admitting) return false;
    for (const engine::Placement& placement : config->placements)
        if (placement.backend == backend) return placement.ready;
    return false;
}

// Triton ends an unloaded model once the streams that have used it are over.
void Gateway::State::retire_backend_streams(Nanos now) {
    backend_streams.each([&](BackendStreamId, BackendStream& stream) {
        const auto takes_none = [&](std::uint32_t model) {
            return !takes_new(model, stream.backend);
        };
        if (std::any_of(stream.carried.begin(), stream.carried.end(), takes_none))
            retire_backend_stream(&stream, now);
    });
}

// Not before all dispatches of the turn are on their streams: the engine has let requests of a
// sequence follow each other.
void Gateway::State::retire_used_streams(Nanos now) {
    for (const BackendStreamId id : retiring_streams)
        if (BackendStream* stream = backend_streams.find(id)) retire_backend_stream(stream, now);
    retiring_streams.clear();
}

// The next stream may be quicker: a sequence with a request on this one goes on when that is
// answered.
void Gateway::State::retire_backend_stream(BackendStream* stream, Nanos now) {
    if (stream->retired) return;
    stream->retired = true;
    for (const BatchId id : stream->batches) engine.end_path(batches.find(id)->handle, now);
    Connection* connection = connections.find(stream->connection);
    if (connection == nullptr) return;
    connection->client->half_close(stream->stream);
    connections.mark_dirty(stream->connection, connection);
}

// The stream to that backend, opened when there is none. 0: it cannot be.
BackendStreamId Gateway::State::backend_stream_for(ClientStreamId client_id, std::uint32_t backend,
                                                   bool decoupled) {
    ClientStream* client = client_streams.find(client_id);
    if (client == nullptr) return 0;
    for (const BackendStreamId id : client->backend_streams) {
        const BackendStream* open = backend_streams.find(id);
        if (open->backend == backend && open->decoupled == decoupled && !open->retired) return id;
    }
    ConnectionId connection_id = 0;
    Connection* connection = choose_connection(backend, &connection_id);
    if (connection == nullptr) return 0;
    // Without a deadline: Triton 2.51 may die of a stream whose deadline passes while requests are
    // on it. The client's stream is ended by us then, and this one cancelled with it.
    const http2::StreamId stream =
        connection->client->open_stream(kModelStreamInfer, kNever, text_of(client->metadata));
    if (stream == 0) return 0;
    const BackendStreamId id = backend_streams.emplace();
    BackendStream* opened = backend_streams.find(id);
    opened->connection = connection_id;
    opened->stream = stream;
    opened->backend = backend;
    opened->decoupled = decoupled;
    opened->client = client_id;
    connection->streams.insert(stream, id);
    client->backend_streams.push_back(id);
    client->answer.trailers.clear();
    return id;
}

void Gateway::State::take_stream_message(ConnectionId id, Connection* connection,
                                         http2::Event* event, Nanos now) {
    const BackendStreamId stream_id = connection->streams.find(event->stream);
    BackendStream* stream = backend_streams.find(stream_id);
    if (stream == nullptr) {
        connection->client->consumed(event->stream, event->bytes);
        connections.mark_dirty(id, connection);
        return;
    }
    if (stream->decoupled) gathering.reply_came(event->bytes);
    if (stream->unpaid_bytes == 0) unpaid_streams.push_back(stream_id);
    stream->unpaid_bytes += event->bytes;
    note_stream_metadata(stream_id, &event->answer);
    kserve::StreamReply reply;
    std::string error;
    if (!kserve::read_stream_reply(event->message, &reply, &error)) {
        connection->client->cancel(event->stream);
        connections.mark_dirty(id, connection);
        backend_stream_ended(
            stream_id,
            Status::error(StatusCode::kInternal, "malformed reply of the backend: " + error),
            CallEnd::kUnreadable, now);
        return;
    }
    const BatchId batch_id = parse_batch_id(reply.id);
    BatchRecord* batch = batches.find(batch_id);
    if (batch != nullptr && batch->backend_stream == stream_id)
        stream_reply_arrived(batch_id, batch, reply, now);
}

// Headers reach the client when they come before its own have left, trailers when they come before
// its stream ends and no other could have any. The replies to plain requests have none to give:
// they are parts of many answers.
void Gateway::State::note_stream_metadata(BackendStreamId id, http2::AnswerMetadata* answer) {
    if (answer->empty()) return;
    const BackendStream* stream = backend_streams.find(id);
    ClientStream* client = stream == nullptr ? nullptr : client_streams.find(stream->client);
    if (client == nullptr) return;
    if (client->answer.headers.empty()) client->answer.headers = std::move(answer->headers);
    if (client->backend_streams.size() == 1) client->answer.trailers = std::move(answer->trailers);
}

void Gateway::State::stream_reply_arrived(BatchId id, BatchRecord* batch,
                                          const kserve::StreamReply& reply, Nanos now) {
    if (reply.final) {
        gathering.request_came_or_ended(now);
        const BatchRecord closed = std::move(*batch);
        leave_backend_stream(closed);
        close_batch(id, batch);
        stream_ended_by_reply(closed, reply, now);
        return;
    }
    RequestRecord* request = requests.find(batch->members[0].user);
    ClientStream* client =
        request == nullptr ? nullptr : client_streams.find(request->client_stream);
    Connection* connection = client == nullptr ? nullptr : connections.find(client->connection);
    if (connection == nullptr) return;
    ++batch->replies_sent;
    if (!reply.error_message.empty() && client->ends_at_error) {
        const Status failed = failure_status(reply, request->prepared.id());
        end_client_stream(request->client_stream, &failed, now);
        return;
    }
    kserve::write_stream_reply(reply, reply.id, request->prepared.whole_id(), &message_scratch);
    connection->server->send(client->stream, std::move(message_scratch), &client->answer);
    message_scratch.reuse();  // what it refers to is not kept until the next reply
    connections.mark_dirty(client->connection, connection);
}

// The last reply to a request; the batch is closed already.
void Gateway::State::stream_ended_by_reply(const BatchRecord& batch,
                                           const kserve::StreamReply& reply, Nanos now) {
    const ModelConfig* model = catalog.at(batch.model);
    RequestRecord* request = requests.find(batch.members[0].user);
    if (model != nullptr && is_refusal(reply) && batch.replies_sent == 0 &&
        triton_says(reply.error_message, model->schema).word != TritonWord::kNone) {
        const std::string_view id = request == nullptr ? reply.id : request->prepared.id();
        reply_failed(batch, failure_status(reply, id, StatusCode::kUnavailable), CallEnd::kAnswered,
                     now);
        return;
    }
    // Asked for by us, to learn of the end.
    const bool swallowed = reply.empty && request != nullptr && !request->ordered &&
                           !request->prepared.scheduling().wants_empty_final;
    if (request != nullptr && !swallowed)
        kserve::write_stream_reply(reply, reply.id, request->prepared.whole_id(),
                                   &request->stream_reply);
    if (reply.error_message.empty()) {
        engine.complete(batch.handle, now);
        return;
    }
    if (request != nullptr) {
        request->executed = !is_refusal(reply);
        note_failure(batch, failure_status(reply, request->prepared.id()));
    }
    engine.dispatch_failed(batch.handle, engine::FailureKind::kFinal, StatusCode::kInternal, now);
}

// Of what came in this turn.
void Gateway::State::pay_windows() {
    for (const BackendStreamId id : unpaid_streams) pay_window(id);
    unpaid_streams.clear();
}

// Lets the backend send on, unless the client has much to read first.
void Gateway::State::pay_window(BackendStreamId id) {
    BackendStream* stream = backend_streams.find(id);
    if (stream == nullptr) return;
    ClientStream* client = client_streams.find(stream->client);
    if (client != nullptr) {
        Connection* client_connection = connections.find(client->connection);
        if (client_connection != nullptr && reads_slowly(*client, *client_connection)) {
            stall(stream->client, client, client_connection);
            return;
        }
    }
    if (stream->unpaid_bytes == 0) return;
    if (Connection* connection = connections.find(stream->connection)) {
        connection->client->consumed(stream->stream, std::exchange(stream->unpaid_bytes, 0));
        connections.mark_dirty(stream->connection, connection);
    }
}

// By the backend or with its connection: what had no reply yet may go elsewhere.
void Gateway::State::backend_stream_ended(BackendStreamId id, Status status, CallEnd end,
                                          Nanos now) {
    const BackendStream closed = std::move(*backend_streams.find(id));
    backend_streams.erase(id);
    if (closed.lingering) --lingering_open;
    if (Connection* connection = connections.find(closed.connection))
        connection->streams.take(closed.stream);
    ClientStream* client = client_streams.find(closed.client);
    if (client != nullptr) {
        auto& open = client->backend_streams;
        open.erase(std::remove(open.begin(), open.end(), id), open.end());
    }
    if (status.ok())
        status = Status::error(StatusCode::kUnavailable, "the backend ended its stream");
    for (const BatchId batch_id : closed.batches) {
        BatchRecord* found = batches.find(batch_id);
        const BatchRecord batch = std::move(*found);
        if (Connection* connection = connections.find(batch.connection))
            --connection->streamed_batches;
        close_batch(batch_id, found);
        if (batch.replies_sent == 0) {
            reply_failed(batch, status, end, now);
            continue;
        }
        // The client has seen a part: running it again would show it twice.
        note_failure(batch, status);
        engine.dispatch_failed(batch.handle, engine::FailureKind::kFinal, status.code, now);
    }
}

// The client's stream is over. Decoupled replies that are due are awaited for a while and dropped:
// Triton 2.51 may die of a stream that is reset meanwhile. A sequence may be started anew at once,
// and what is left of it must not run then.
void Gateway::State::let_go_backend_stream(BackendStreamId id, Nanos now) {
    BackendStream* stream = backend_streams.find(id);
    if (stream == nullptr) return;
    Connection* connection = connections.find(stream->connection);
    const auto is_reset = [this](BatchId batch) {
        const ModelConfig* model = catalog.at(batches.find(batch)->model);
        return model != nullptr && (model->schema.sequence || model->policy.cancellable);
    };
    if (connection == nullptr ||
        std::any_of(stream->batches.begin(), stream->batches.end(), is_reset)) {
        reset_backend_stream(id, now);
        return;
    }
    connection->client->half_close(stream->stream);
    connections.mark_dirty(stream->connection, connection);
    pay_window(id);
    stream->lingering = true;
    ++lingering_open;
    lingering.emplace_back(now + kLingerNs, id);
}

void Gateway::State::reset_backend_stream(BackendStreamId id, Nanos now) {
    const BackendStream* stream = backend_streams.find(id);
    if (stream == nullptr) return;
    if (Connection* connection = connections.find(stream->connection)) {
        connection->client->cancel(stream->stream);
        connections.mark_dirty(stream->connection, connection);
    }
    backend_stream_ended(id, Status::error(StatusCode::kCancelled, "the client is gone"),
                         CallEnd::kUnreadable, now);
}

// Those that ended by themselves leave the front of the list without more ado.
void Gateway::State::reset_lingering(Nanos now) {
    while (!lingering.empty()) {
        const auto [until, id] = lingering.front();
        if (until > now && backend_streams.find(id) != nullptr && lingering_open <= kLingeringMax)
            return;
        lingering.pop_front();
        reset_backend_stream(id, now);
    }
}

void Gateway::State::leave_backend_stream(const BatchRecord& batch) {
    if (Connection* connection = connections.find(batch.connection)) --connection->streamed_batches;
    BackendStream* stream = backend_streams.find(batch.backend_stream);
    if (stream == nullptr) return;
    const BatchId last = stream->batches.back();
    stream->batches[batch.list_index] = last;
    batches.find(last)->list_index = batch.list_index;
    stream->batches.pop_back();
}

}  // namespace infersched::gateway
