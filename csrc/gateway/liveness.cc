// Is a silent backend still there? Triton answers pings with GOAWAY, so ServerLive on the data
// connection is the probe, sent only while work is out and nothing has come for a while
// (protocol.md section 1).
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {
constexpr std::string_view kServerLive = "/inference.GRPCInferenceService/ServerLive";
}

void Gateway::State::probe_backends(Nanos now) {
    for (const Backend& backend : backends) {
        if (!backend.in_use) continue;
        // A connection given up leaves the list.
        const std::vector<ConnectionId> ids = backend.connections;
        for (const ConnectionId id : ids)
            if (Connection* connection = connections.find(id))
                probe_connection(id, connection, now);
    }
}

void Gateway::State::probe_connection(ConnectionId id, Connection* connection, Nanos now) {
    if (connection->lost || connection->requests.size() == 0) return;
    if (connection->probe != 0) {
        const Nanos heard = std::max(connection->probe_started, connection->received_at);
        if (now - heard < kProbeTimeoutNs) return;
        if (loop_was_late) {
            connection->probe_started = now;
            return;
        }
        connections.mark_closing(id, connection);
        lose_connection(id, "no answer to ServerLive while work was out", now);
        return;
    }
    if (now - connection->received_at < kProbePeriodNs) return;
    if (connection->probe_started + kProbePeriodNs > now) return;
    connection->probe_started = now;
    connection->probe = connection->client->call(kServerLive, kSecond, {}, Pieces());
    connections.mark_dirty(id, connection);
}

Nanos Gateway::State::next_probe() const {
    Nanos next = kNever;
    for (const Backend& backend : backends)
        if (backend.in_use && backend.inflight_batches > 0) next = last_turn + kProbePeriodNs;
    for (const Leaving& entry : leaving) next = std::min(next, entry.until);
    return next;
}

}  // namespace infersched::gateway
