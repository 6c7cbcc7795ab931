// Is a silent backend still there? Triton answers pings with GOAWAY, so ServerLive on the data
// connection is the probe, sent only while work is out and nothing has come for a while.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {
constexpr std::string_view kServerLive = "/inference.GRPCInferenceService/ServerLive";
}

// Looks at every connection with work out when the earliest of them is due. What was heard since
// only makes it later: then this is done once too often, and never too late.
void Gateway::State::probe_backends(Nanos now) {
    if (now < probe_at) return;
    probe_at = kNever;
    for (const Backend& backend : backends) {
        if (backend.inflight_batches == 0) continue;
        // A connection given up leaves the list.
        const std::vector<ConnectionId> ids = backend.connections;
        for (const ConnectionId id : ids)
            if (Connection* connection = connections.find(id))
                probe_at = std::min(probe_at, probe_connection(id, connection, now));
    }
}

// Returns when the connection must be looked at again.
Nanos Gateway::State::probe_connection(ConnectionId id, Connection* connection, Nanos now) {
    if (connection->lost || !connection->has_work_out()) return kNever;
    if (connection->probe != 0) {
        const Nanos heard = std::max(connection->probe_started, connection->received_at);
        if (now < heard + kProbeTimeoutNs) return heard + kProbeTimeoutNs;
        if (loop_was_late) {
            connection->probe_started = now;
            return now + kProbeTimeoutNs;
        }
        connections.mark_closing(id, connection);
        lose_connection(id, "no answer to ServerLive while work was out", now);
        return kNever;
    }
    if (now < connection->received_at + kProbePeriodNs)
        return connection->received_at + kProbePeriodNs;
    // A probe that waits for a free stream says nothing about the backend.
    if (!connection->client->ready()) return now + kProbePeriodNs;
    connection->probe_started = now;
    connection->probe = connection->client->call(kServerLive, kSecond, {}, Pieces());
    connections.mark_dirty(id, connection);
    return now + kProbeTimeoutNs;
}

// When a turn is due for liveness or a placement that was left out.
Nanos Gateway::State::next_look() const {
    Nanos next = probe_at;
    for (const Leaving& entry : leaving) next = std::min(next, entry.until);
    return next;
}

}  // namespace infersched::gateway
