// Step 1 of a turn: events that the sessions recorded become submits, cancels, replies and relays.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {

// Requests up to this size wait for a processor rather than for their own bytes.
constexpr std::uint64_t kSmallRequestBytes = 64u << 10;
// So long after one of them others are taken to follow.
constexpr Nanos kPacedNs = 20 * kMillisecond;

}  // namespace

// Returns whether events were left for the next turn.
bool Gateway::State::take_events(Nanos now) {
    std::vector<ConnectionId> taken;
    taken.swap(connections.active);
    bool left_over = false;
    for (const ConnectionId id : taken) {
        Connection* connection = connections.find(id);
        if (connection == nullptr) continue;
        connection->active = false;
        if (connection->peer == Peer::kClient) {
            if (take_client_events(id, connection, now)) {
                connections.mark_active(id, connection);
                left_over = true;
                continue;
            }
        } else {
            take_backend_events(id, connection, now);
        }
        if (connection->lost) {
            bury_connection(id, connection);
        } else {
            connections.mark_dirty(id, connection);
        }
    }
    // Keep the memory of the list when nothing was added meanwhile.
    if (connections.active.empty()) {
        taken.clear();
        connections.active.swap(taken);
    }
    return left_over;
}

bool Gateway::State::take_client_events(ConnectionId id, Connection* connection, Nanos now) {
    std::uint32_t started = 0;
    if (!connection->stalled.empty()) started = resume_stalled(id, connection, now);
    http2::Event event;
    while (connection->server->next_event(&event)) {
        switch (event.kind) {
            case http2::EventKind::kRequest:
                note_arrival(event, now);
                take_request(id, connection, &event, now);
                ++started;
                break;
            case http2::EventKind::kStreamOpened:
                open_client_stream(id, connection, &event);
                break;
            case http2::EventKind::kMessage:
                note_arrival(event, now);
                take_message(id, connection, &event, now);
                ++started;
                break;
            case http2::EventKind::kHalfClosed:
                requests_ended(connection->streams.find(event.stream), now);
                break;
            case http2::EventKind::kCancelled:
                if (RequestRecord* record = requests.find(connection->requests.find(event.stream)))
                    engine.cancel(record->handle, now);
                else if (const ParkedId parked = connection->parked.find(event.stream))
                    forget_parked(parked);
                else
                    end_client_stream(connection->streams.find(event.stream), nullptr, now);
                break;
            default:
                relay_client_event(id, connection, &event);
        }
        event = http2::Event();
        if (started >= kRequestsPerTurnMax) return connection->server->has_events();
    }
    return false;
}

// Large requests leave room for small ones.
void Gateway::State::note_arrival(const http2::Event& event, Nanos now) {
    if (event.bytes <= kSmallRequestBytes) server_config.paced_until = now + kPacedNs;
}

void Gateway::State::take_backend_events(ConnectionId id, Connection* connection, Nanos now) {
    http2::Event event;
    while (connection->client->next_event(&event)) {
        if (event.kind == http2::EventKind::kMessage) {
            take_stream_message(id, connection, &event, now);
        } else if (event.kind != http2::EventKind::kReply) {
            relay_cold_event(connection, &event);
        } else if (event.stream == connection->probe) {
            connection->probe = 0;  // any answer proves life
        } else if (const BackendStreamId stream = connection->streams.find(event.stream)) {
            note_stream_metadata(stream, &event.answer);
            CallEnd end = call_end(*connection, event);
            if (end == CallEnd::kAnswered) end = CallEnd::kUnreadable;  // no answer to a message
            backend_stream_ended(stream, std::move(event.status), end, now);
        } else {
            take_reply(connection, &event, now);
        }
    }
    pay_windows();
    const http2::ClientSession& session = *connection->client;
    if (!connection->settled && session.ready()) {
        connection->settled = true;
        if (connection->peer == Peer::kBackend) {
            count_connections();
            notices.push_back(
                {Notice::Kind::kBackendConnection, connection->backend, 0, true, 0, {}});
        }
    }
    if (session.draining()) connections.mark_retired(id, connection);
    if (connection->retiring && session.open_streams() == 0)
        connections.mark_closing(id, connection);
    if (connection->peer == Peer::kBackend) refresh_backend(connection->backend, now);
}

void Gateway::State::lose_connection(ConnectionId id, const std::string& reason, Nanos now) {
    Connection* connection = connections.find(id);
    if (connection == nullptr || connection->lost) return;
    connection->lost = true;
    if (connection->server) {
        connection->server->connection_lost();
        --client_count;
    } else {
        connection->client->connection_lost();
    }
    if (connection->peer == Peer::kBackend && connection->backend < backends.size()) {
        Backend& backend = backends[connection->backend];
        auto& open = backend.connections;
        open.erase(std::remove(open.begin(), open.end(), id), open.end());
        notices.push_back(
            {Notice::Kind::kBackendConnection, connection->backend, 0, !open.empty(), 0, reason});
        refresh_backend(connection->backend, now);
    }
    if (id == cold) cold = 0;
    count_connections();
    connections.mark_active(id, connection);
}

// The events of a lost connection are taken; what it still held is let go.
void Gateway::State::bury_connection(ConnectionId id, Connection* connection) {
    std::vector<std::uint64_t> left;
    connection->relays.each([&](http2::StreamId, std::uint64_t relay) { left.push_back(relay); });
    for (const std::uint64_t relay : left) end_relay(relay);
    // Batches whose reply the session did not announce cannot exist; requests left are cancelled by
    // their kCancelled events and carry a connection id that finds nothing from now on.
    connections.erase(id);
}

}  // namespace infersched::gateway
