// Streams of the cold RPCs, health and reflection: relayed to the control plane as they come.
#include "gateway/state.h"

namespace infersched::gateway {

namespace {

constexpr std::uint32_t kHttp2Cancel = 8;
constexpr std::string_view kPeerHeader = "infersched-peer";

Status control_plane_away() {
    return Status::error(StatusCode::kUnavailable,
                         "the control plane of the scheduler is not connected; inference goes on");
}

}  // namespace

void Gateway::State::relay_client_event(ConnectionId id, Connection* connection,
                                        http2::Event* event) {
    if (event->kind == http2::EventKind::kForwardHeaders) {
        open_relay(id, connection, event);
        return;
    }
    const std::uint64_t relay_id = connection->relays.find(event->stream);
    const Relay* relay = relays.find(relay_id);
    if (relay == nullptr) return;
    // Not always the present one: another may have come since.
    const ConnectionId control_id = relay->cold;
    Connection* control = connections.find(control_id);
    if (control == nullptr) return;
    switch (event->kind) {
        case http2::EventKind::kForwardData:
            control->client->forward_data(relay->cold_stream, event->message, event->message.span(),
                                          event->end_stream);
            break;
        case http2::EventKind::kForwardEnd:
            control->client->forward_data(relay->cold_stream, BufferRef(), Span{}, true);
            break;
        case http2::EventKind::kForwardReset:
            control->client->reset(relay->cold_stream, kHttp2Cancel);
            end_relay(relay_id);
            break;
        case http2::EventKind::kForwardSent:
            control->client->forward_consumed(relay->cold_stream, event->bytes);
            break;
        default:
            break;
    }
    connections.mark_dirty(control_id, control);
}

void Gateway::State::open_relay(ConnectionId id, Connection* connection, http2::Event* event) {
    Connection* control = connections.find(cold);
    http2::StreamId stream = 0;
    if (control != nullptr && !control->lost) {
        event->headers.emplace_back(kPeerHeader, connection->peer_address);
        stream = control->client->forward_open(event->headers, event->end_stream);
    }
    if (stream == 0) {
        connection->server->refuse(event->stream, control_plane_away());
        return;
    }
    const std::uint64_t relay = relays.emplace();
    *relays.find(relay) = {cold, id, event->stream, stream};
    connection->relays.insert(event->stream, relay);
    control->relays.insert(stream, relay);
    connections.mark_dirty(cold, control);
    ++page->forwarded_streams_total;
}

void Gateway::State::relay_cold_event(Connection* connection, http2::Event* event) {
    const std::uint64_t relay_id = connection->relays.find(event->stream);
    const Relay* relay = relays.find(relay_id);
    if (relay == nullptr) return;
    Connection* client = connections.find(relay->client);
    if (client == nullptr || client->lost) {
        connection->client->reset(event->stream, kHttp2Cancel);
        end_relay(relay_id);
        return;
    }
    http2::ServerSession& server = *client->server;
    const http2::StreamId stream = relay->client_stream;
    connections.mark_dirty(relay->client, client);
    switch (event->kind) {
        case http2::EventKind::kForwardHeaders:
            server.forward_headers(stream, event->headers, event->end_stream);
            if (event->end_stream) end_relay(relay_id);
            break;
        case http2::EventKind::kForwardData:
            server.forward_data(stream, event->message, event->message.span());
            break;
        case http2::EventKind::kForwardTrailers:
            server.forward_trailers(stream, event->headers);
            end_relay(relay_id);
            break;
        case http2::EventKind::kForwardReset:
            if (connection->lost)
                server.refuse(stream, control_plane_away());
            else
                server.reset(stream, kHttp2Cancel);
            end_relay(relay_id);
            break;
        case http2::EventKind::kForwardSent:
            server.forward_consumed(stream, event->bytes);
            break;
        default:
            break;
    }
}

void Gateway::State::end_relay(std::uint64_t relay_id) {
    const Relay* relay = relays.find(relay_id);
    if (relay == nullptr) return;
    if (Connection* client = connections.find(relay->client))
        client->relays.take(relay->client_stream);
    if (Connection* control = connections.find(relay->cold))
        control->relays.take(relay->cold_stream);
    relays.erase(relay_id);
}

}  // namespace infersched::gateway
