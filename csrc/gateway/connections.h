// Every open connection of the data plane, and the lists that one loop turn works through.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/slot_map.h"
#include "base/stream_map.h"
#include "gateway/gateway.h"
#include "http2/session.h"

namespace infersched::gateway {

enum class Peer : std::uint8_t { kClient, kBackend, kCold };

struct Connection {
    Peer peer = Peer::kClient;
    std::unique_ptr<http2::ServerSession> server;  // kClient
    std::unique_ptr<http2::ClientSession> client;  // kBackend, kCold
    std::string peer_address;                      // kClient
    std::uint32_t backend = 0;                     // kBackend
    bool dirty = false;                            // in the dirty list
    bool active = false;                           // in the active list
    bool lost = false;                             // the transport is gone
    bool closing = false;                          // the shell was asked to close it
    bool settled = false;                          // kBackend: the peer's SETTINGS have come
    bool retiring = false;                         // closed when its calls are done, gets no new
    // kClient: stream -> request and stream -> relay. kBackend: stream -> batch. kCold: -> relay.
    StreamMap requests;
    StreamMap relays;
    StreamMap parked;                    // kClient: -> ParkedCall
    StreamMap streams;                   // kClient: -> ClientStream. kBackend: -> BackendStream.
    std::vector<std::uint64_t> stalled;  // kClient: ClientStreams that wait to be read
    std::uint32_t streamed_batches = 0;  // kBackend: out on its streams
    // kBackend: liveness.
    Nanos received_at = 0;
    http2::StreamId probe = 0;
    Nanos probe_started = 0;
    std::uint64_t resets_counted = 0;  // kClient

    // kBackend: may be given calls. At the peer's stream limit they wait in the session.
    bool usable() const { return settled && !retiring && !lost && !client->draining(); }
    // kBackend: something is expected to come.
    bool has_work_out() const { return requests.size() + streamed_batches > 0; }
    bool has_events() const { return server ? server->has_events() : client->has_events(); }
};

class Connections {
  public:
    ConnectionId add(Connection&& connection) {
        const ConnectionId id = open_.emplace();
        *open_.find(id) = std::move(connection);
        return id;
    }
    Connection* find(ConnectionId id) { return open_.find(id); }
    void erase(ConnectionId id) { open_.erase(id); }
    std::size_t size() const { return open_.size(); }
    template <typename Visit>
    void each(Visit&& visit) {
        open_.each(std::forward<Visit>(visit));
    }

    void mark_dirty(ConnectionId id, Connection* connection) {
        if (connection->dirty || connection->lost) return;
        connection->dirty = true;
        dirty.push_back(id);
    }
    void mark_active(ConnectionId id, Connection* connection) {
        if (connection->active) return;
        connection->active = true;
        active.push_back(id);
    }
    void mark_closing(ConnectionId id, Connection* connection) {
        if (connection->closing || connection->lost) return;
        connection->closing = true;
        closing.push_back(id);
    }

    // Its calls go on, but another connection is to be dialled in its place.
    void mark_retired(ConnectionId id, Connection* connection) {
        if (connection->retiring || connection->lost) return;
        connection->retiring = true;
        retired.push_back(id);
    }

    std::vector<ConnectionId> dirty;    // may have something to write
    std::vector<ConnectionId> active;   // have recorded events
    std::vector<ConnectionId> closing;  // to be closed by the shell
    std::vector<ConnectionId> retired;  // to be replaced by the shell

  private:
    SlotMap<Connection> open_;
};

}  // namespace infersched::gateway
