// What a Gateway holds, and the steps of its turn; each group of steps has a file of its own.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "gateway/catalog.h"
#include "gateway/connections.h"
#include "gateway/gateway.h"
#include "gateway/requests.h"
#include "http2/session.h"
#include "kserve/codec.h"

namespace infersched::gateway {

// Requests that one connection may start in one loop turn.
inline constexpr std::uint32_t kRequestsPerTurnMax = 256;
// A backend connection with work out is probed when nothing came from it for this long,
inline constexpr Nanos kProbePeriodNs = 150 * kMillisecond;
// and given up when the probe is not answered in this time (both together stay under a second).
inline constexpr Nanos kProbeTimeoutNs = 750 * kMillisecond;
// A loop that was itself late by more than this proves nothing about a backend.
inline constexpr Nanos kLoopLateNs = 100 * kMillisecond;
// How long a placement stays out of rotation after its backend said "unknown model": longer than
// the control plane needs to see it.
inline constexpr Nanos kLeavingHoldNs = 1 * kSecond;

// The reply to a lone request that is expected sooner than this is awaited by turning the loop:
// waking a thread that sleeps would cost as much as the rest of the hop. Under more load, and for
// models that take longer, the loop sleeps.
inline constexpr Nanos kAwakeMaxNs = 250 * kMicrosecond;

// A client stream relayed to the control plane.
struct Relay {
    ConnectionId cold = 0;
    ConnectionId client = 0;
    http2::StreamId client_stream = 0;
    http2::StreamId cold_stream = 0;
};

struct Backend {
    bool in_use = false;
    BackendConfig config;
    std::vector<ConnectionId> connections;
    std::uint32_t next_connection = 0;  // round robin among equally loaded ones
    bool available = false;             // as the engine was told
    std::uint32_t inflight_batches = 0;
    std::uint64_t inflight_rows = 0;
};

// A placement whose backend said that it does not serve the model, while the catalog still says it
// does.
struct Leaving {
    std::uint32_t model = 0;
    std::uint32_t backend = 0;
    Nanos until = 0;
};

struct Gateway::State {
    explicit State(engine::CountersPage* counters);

    // steering.cc
    std::string apply(const WantedState& wanted, Nanos now);
    void apply_limits(const Limits& limits);
    void apply_backends(const std::vector<BackendConfig>& wanted, Nanos now);
    void apply_models(const std::vector<std::shared_ptr<const ModelConfig>>& wanted, Nanos now);
    void configure_model(const ModelConfig& model, Nanos now);
    void remove_model(std::uint32_t index, Nanos now);
    void refresh_backend(std::uint32_t backend, Nanos now);
    void mark_leaving(std::uint32_t model, std::uint32_t backend, Nanos now);
    void release_leaving(Nanos now);
    void begin_drain(Nanos deadline, Nanos now);
    void check_drained(Nanos now);
    bool drain_complete();
    void count_connections();

    // intake.cc
    bool take_events(Nanos now);
    bool take_client_events(ConnectionId id, Connection* connection, Nanos now);
    void take_backend_events(ConnectionId id, Connection* connection, Nanos now);
    const ModelConfig* find_model(Span message, Status* status);
    void take_request(ConnectionId id, Connection* connection, http2::Event* event, Nanos now);
    void refuse(ConnectionId id, Connection* connection, const http2::Event& event,
                const Status& status);
    void lose_connection(ConnectionId id, const std::string& reason, Nanos now);
    void bury_connection(ConnectionId id, Connection* connection);
    bool charge_overhead(RequestRecord* record, std::uint64_t bytes);

    // dispatch.cc
    void carry_out_actions(Nanos now);
    void dispatch(const engine::Action& action, Nanos now);
    void dispatch_unsent(const engine::Action& action, Nanos now);
    Nanos backend_timeout(const engine::Action& action, Nanos now) const;
    void abandon(const engine::Action& action);
    Connection* choose_connection(std::uint32_t backend, ConnectionId* id);
    void take_reply(ConnectionId id, Connection* connection, http2::Event* event, Nanos now);
    void reply_failed(const BatchRecord& batch, Status status, bool nothing_ran, Nanos now);
    void reply_arrived(const BatchRecord& batch, const BufferRef& message, Nanos now);
    void note_failure(const BatchRecord& batch, Status status);
    void stay_awake(const BatchRecord& batch, Nanos now);
    void close_batch(BatchId id, BatchRecord* batch);

    // answers.cc
    void answer(const engine::Action& action, Nanos now);
    void finish_request(RequestId id, RequestRecord* request, Connection* connection);

    // liveness.cc
    void probe_backends(Nanos now);
    Nanos probe_connection(ConnectionId id, Connection* connection, Nanos now);
    Nanos next_look() const;

    // relay.cc
    void relay_client_event(ConnectionId id, Connection* connection, http2::Event* event);
    void relay_cold_event(Connection* connection, http2::Event* event);
    void open_relay(ConnectionId id, Connection* connection, http2::Event* event);
    void end_relay(std::uint64_t relay);

    engine::CountersPage* page;
    engine::Engine engine;
    http2::ServerConfig server_config;
    http2::ByteBudget budget;
    kserve::SignatureTable signatures;
    kserve::RequestReader reader;

    WantedState wanted;
    Catalog catalog;
    std::vector<Backend> backends;  // by index
    std::vector<Leaving> leaving;

    Connections connections;
    ConnectionId cold = 0;
    std::uint32_t client_count = 0;
    SlotMap<RequestRecord> requests;
    SlotMap<BatchRecord> batches;
    std::vector<BatchId> batch_of_slot;  // by the slot in the engine's handle
    SlotMap<Relay> relays;

    Nanos engine_wake = kNever;
    Nanos awake_until = 0;             // no sleep before: a lone request is about to come back
    std::vector<Nanos> round_trip_ns;  // of the last reply, by model; 0 = none yet
    Nanos probe_at = kNever;           // when the liveness of a backend must be looked at again
    bool loop_was_late = false;
    bool draining = false;
    bool drained = false;
    Nanos drain_deadline = kNever;
    std::deque<Notice> notices;
    std::vector<kserve::RequestRows> merge_scratch;
    std::vector<kserve::ReplyRows> reply_scratch;
};

}  // namespace infersched::gateway
