// The client's side of ModelStreamInfer: requests in, replies out in their order, the end.
#include <algorithm>
#include <utility>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {

bool wants_error_status(const http2::Headers& headers) {
    const auto first = std::find_if(headers.begin(), headers.end(), [](const auto& header) {
        return header.first == kErrorHeader;
    });
    return first != headers.end() && first->second == "true";
}

}  // namespace

void Gateway::State::open_client_stream(ConnectionId id, Connection* connection,
                                        http2::Event* event) {
    const ClientStreamId stream_id = client_streams.emplace();
    ClientStream* stream = client_streams.find(stream_id);
    stream->connection = id;
    stream->stream = event->stream;
    stream->deadline = event->deadline;
    stream->metadata = shared_text(std::move(event->metadata));
    stream->headers = std::move(event->headers);
    stream->ends_at_error = wants_error_status(stream->headers);
    connection->streams.insert(event->stream, stream_id);
    if (stream->deadline != kNever) stream_deadlines.emplace(stream->deadline, stream_id);
}

void Gateway::State::take_message(ConnectionId id, Connection* connection, http2::Event* event,
                                  Nanos now) {
    const ClientStreamId stream_id = connection->streams.find(event->stream);
    ClientStream* stream = client_streams.find(stream_id);
    if (stream == nullptr || stream->half_closed) {
        connection->server->release(event->bytes, event->window_bytes);
        connections.mark_dirty(id, connection);
    } else if (stream->parked != 0) {
        park_behind(stream, connection, event, now);
    } else if (!stream->held.empty() || must_wait(*stream, *connection)) {
        connection->server->hold(stream->stream, true);
        stream->held.push_back(std::move(*event), connection->server.get());
        stall(stream_id, stream, connection);
    } else {
        start_message(stream_id, stream, connection, event, now);
    }
}

void Gateway::State::start_message(ClientStreamId id, ClientStream* stream, Connection* connection,
                                   http2::Event* event, Nanos now, bool waited) {
    Arriving arriving;
    arriving.connection = stream->connection;
    arriving.stream = stream->stream;
    arriving.client_stream = id;
    arriving.event = event;
    arriving.waited = waited;
    arriving.deadline = stream->deadline;
    arriving.metadata = text_of(stream->metadata);
    arriving.headers = &stream->headers;
    RequestId request = 0;
    const Status status = admit(&arriving, &request, now);
    if (request != 0) {
        RequestRecord* record = requests.find(request);
        record->metadata = stream->metadata;
        record->list_index = static_cast<std::uint32_t>(stream->requests.size());
        stream->requests.push_back(request);
        if (!record->ordered) {
            gathering.request_came_or_ended(now);
            return;
        }
        gathering.other_request_came(now);
        record->order = stream->ordered_first + stream->ordered.size();
        stream->ordered.emplace_back();
        return;
    }
    if (status.ok()) {
        park_message(arriving, stream, connection, event, now);
        return;
    }
    // To Triton a message that cannot be parsed is the end of the requests.
    if (status.code == StatusCode::kInternal) {
        connection->server->release(event->bytes + stream->held.bytes(), event->window_bytes);
        connections.mark_dirty(stream->connection, connection);
        stream->held.clear();
        requests_ended(id, now);
        return;
    }
    refuse_message(stream, connection, *event, arriving, status);
}

void Gateway::State::refuse_message(ClientStream* stream, Connection* connection,
                                    const http2::Event& event, const Arriving& arriving,
                                    const Status& status) {
    connection->server->release(event.bytes, event.window_bytes);
    connections.mark_dirty(stream->connection, connection);
    Pieces message;
    kserve::write_stream_error(status.message, arriving.whole_id, &message);
    if (arriving.decoupled) {
        connection->server->send(stream->stream, std::move(message), &stream->answer);
        return;
    }
    stream->ordered.emplace_back();
    send_in_order(stream, connection, stream->ordered_first + stream->ordered.size() - 1,
                  std::move(message));
}

void Gateway::State::requests_ended(ClientStreamId id, Nanos now) {
    ClientStream* stream = client_streams.find(id);
    if (stream == nullptr) return;
    stream->half_closed = true;
    finish_if_done(id, stream, now);
}

bool Gateway::State::reads_slowly(const ClientStream& stream, const Connection& connection) const {
    return connection.server->unsent_bytes(stream.stream) > kStreamUnsentMax;
}

bool Gateway::State::must_wait(const ClientStream& stream, const Connection& connection) const {
    return stream.parked != 0 || stream.ordered.size() >= kStreamOrderedMax ||
           stream.ordered_bytes > kStreamOrderedBytesMax || reads_slowly(stream, connection);
}

void Gateway::State::stall(ClientStreamId id, ClientStream* stream, Connection* connection) {
    if (stream->stalled) return;
    stream->stalled = true;
    connection->stalled.push_back(id);
}

// Looks again at the streams that waited: for their clients to read, or for earlier replies.
// Returns how many held messages were looked at.
std::uint32_t Gateway::State::resume_stalled(ConnectionId id, Connection* connection, Nanos now) {
    std::vector<ClientStreamId> waiting;
    waiting.swap(connection->stalled);
    std::uint32_t started = 0;
    std::size_t had_their_turn = 0;
    for (const ClientStreamId stream_id : waiting) {
        ClientStream* stream = client_streams.find(stream_id);
        if (stream == nullptr) continue;
        const bool has_turn = started < kRequestsPerTurnMax;
        while (!stream->held.empty() && started < kRequestsPerTurnMax &&
               !must_wait(*stream, *connection)) {
            http2::Event event = stream->held.take_front();
            ++started;
            start_message(stream_id, stream, connection, &event, now);
            stream = client_streams.find(stream_id);
            if (stream == nullptr) break;
        }
        if (stream == nullptr) continue;
        stream->stalled = false;
        for (const BackendStreamId backend : stream->backend_streams) pay_window(backend);
        if (stream->held.empty()) {
            connection->server->hold(stream->stream, false);
        } else if (stream->parked == 0) {
            stall(stream_id, stream, connection);
            if (started >= kRequestsPerTurnMax) connections.mark_active(id, connection);
        }
        if (has_turn) had_their_turn = connection->stalled.size();
        finish_if_done(stream_id, stream, now);
    }
    // The next turn is for those that found nothing left of this one.
    auto& stalled = connection->stalled;
    std::rotate(stalled.begin(), stalled.begin() + static_cast<std::ptrdiff_t>(had_their_turn),
                stalled.end());
    return started;
}

void Gateway::State::send_in_order(ClientStream* stream, Connection* connection,
                                   std::uint64_t order, Pieces&& message) {
    OrderedReply& place = stream->ordered[order - stream->ordered_first];
    place.ready = true;
    place.message = std::move(message);
    stream->ordered_bytes += place.message.size();
    budget.unsent += place.message.size();
    while (!stream->ordered.empty() && stream->ordered.front().ready) {
        stream->ordered_bytes -= stream->ordered.front().message.size();
        budget.unsent -= stream->ordered.front().message.size();
        connection->server->send(stream->stream, std::move(stream->ordered.front().message),
                                 &stream->answer);
        stream->ordered.pop_front();
        ++stream->ordered_first;
    }
}

void Gateway::State::answer_in_stream(const engine::Action& action, RequestRecord* request,
                                      Connection* connection, Nanos now) {
    ClientStream* stream = client_streams.find(request->client_stream);
    // At its deadline the stream as a whole is answered.
    if (stream == nullptr || stream->deadline <= now) return;
    Pieces message = std::move(request->stream_reply);
    Status status;
    if (action.outcome != engine::Outcome::kCompleted) {
        status = answer_status(action, *request, model_name(request->model));
        if (message.empty())
            kserve::write_stream_failure(request->prepared, status.message, &message);
    } else if (!request->streamed) {
        if (put_reply_together(request, &message, &status))
            kserve::wrap_stream_reply(&message);
        else
            kserve::write_stream_failure(request->prepared, status.message, &message);
    }
    if (!status.ok() && request->executed && stream->ends_at_error) {
        end_client_stream(request->client_stream, &status, now);
    } else if (request->ordered) {
        send_in_order(stream, connection, request->order, std::move(message));
    } else if (!message.empty()) {
        connection->server->send(stream->stream, std::move(message), &stream->answer);
    }
}

// The request was answered: its stream knows it no more, and may be done.
void Gateway::State::forget_in_stream(RequestRecord* request, Nanos now) {
    ClientStream* stream = client_streams.find(request->client_stream);
    if (stream == nullptr) return;
    const RequestId last = stream->requests.back();
    stream->requests[request->list_index] = last;
    requests.find(last)->list_index = request->list_index;
    stream->requests.pop_back();
    Connection* connection = connections.find(stream->connection);
    if (stream->stalled && connection != nullptr)
        connections.mark_active(stream->connection, connection);
    finish_if_done(request->client_stream, stream, now);
}

void Gateway::State::finish_if_done(ClientStreamId id, ClientStream* stream, Nanos now) {
    if (!stream->half_closed || !stream->held.empty() || !stream->requests.empty() ||
        !stream->ordered.empty())
        return;
    // Past its deadline, replies were left out: expire_streams() ends it.
    if (stream->deadline <= now) return;
    const Status done;
    end_client_stream(id, &done, now);
}

void Gateway::State::end_client_stream(ClientStreamId id, const Status* status, Nanos now) {
    ClientStream* found = client_streams.find(id);
    if (found == nullptr) return;
    const ClientStream stream = std::move(*found);
    client_streams.erase(id);
    if (stream.deadline != kNever) stream_deadlines.erase({stream.deadline, id});
    budget.unsent -= stream.ordered_bytes;
    if (stream.parked != 0)
        take_parked(stream.parked, status == nullptr ? &page->loading_cancelled_total
                                   : status->code == StatusCode::kDeadlineExceeded
                                       ? &page->loading_expired_total
                                       : &page->loading_failed_total);
    for (const RequestId request : stream.requests)
        if (RequestRecord* record = requests.find(request)) engine.cancel(record->handle, now);
    for (const BackendStreamId backend : stream.backend_streams)
        let_go_backend_stream(backend, now);
    Connection* connection = connections.find(stream.connection);
    if (connection == nullptr) return;
    connection->streams.take(stream.stream);
    connection->server->release(stream.held.bytes(), 0);
    if (status != nullptr) connection->server->finish(stream.stream, *status, &stream.answer);
    connections.mark_dirty(stream.connection, connection);
}

void Gateway::State::end_all_streams(const Status& status, Nanos now) {
    std::vector<ClientStreamId> open;
    client_streams.each([&](ClientStreamId id, const ClientStream&) { open.push_back(id); });
    for (const ClientStreamId id : open) end_client_stream(id, &status, now);
}

void Gateway::State::expire_streams(Nanos now) {
    const Status expired = Status::error(StatusCode::kDeadlineExceeded, "Deadline Exceeded");
    while (!stream_deadlines.empty() && stream_deadlines.begin()->first <= now)
        end_client_stream(stream_deadlines.begin()->second, &expired, now);
}

}  // namespace infersched::gateway
