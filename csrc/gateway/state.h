// What a Gateway holds, and the steps of its turn; each group of steps has a file of its own.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "gateway/catalog.h"
#include "gateway/connections.h"
#include "gateway/gateway.h"
#include "gateway/gathering.h"
#include "gateway/parking.h"
#include "gateway/requests.h"
#include "gateway/streams.h"
#include "http2/session.h"
#include "kserve/codec.h"

namespace infersched::gateway {

// Of a client's stream: "true" ends it at the first failed execution, with a status.
inline constexpr std::string_view kErrorHeader = http2::kStreamErrorsHeader;
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
    std::string lost_region;  // not used any more: the backend lacks it, or a call in it is lost
};

// A request on its way into the engine: a unary call, or a message of a client's stream.
struct Arriving {
    ConnectionId connection = 0;
    http2::StreamId stream = 0;
    ClientStreamId client_stream = 0;
    const http2::Event* event = nullptr;  // message, bytes, arrival
    Nanos deadline = kNever;
    std::string_view metadata;
    const http2::Headers* headers = nullptr;  // watched ones
    bool waited = false;                      // for its model, which is loaded now
    // Found out on the way.
    std::string_view id;
    std::string_view whole_id;  // as errors on a stream show it
    bool decoupled = false;
    LoadingModel* awaited = nullptr;  // it has to wait for that

    static Nanos budget_ns(std::int64_t timeout_us);
    Nanos deadline_within(Nanos budget) const;
    LateBy late_by(Nanos earliest) const;
};

// A placement whose backend said that it does not serve the model, while the catalog still says it
// does.
struct Leaving {
    std::uint32_t model = 0;
    std::uint32_t backend = 0;
    Nanos until = 0;
};

// Memory of a call whose end we do not know: the backend's process may still use it. It is free a
// while after the backend has been seen not to have that region any more, or has left the
// configuration.
struct Quarantined {
    std::unique_ptr<SharedBatch> shared;
    Nanos release_at = kNever;
};

struct Gateway::State {
    explicit State(engine::CountersPage* counters);

    // steering.cc
    std::string apply(const WantedState& wanted, Nanos now);
    void apply_limits(const Limits& limits);
    void apply_tenants(const Limits& limits);
    void apply_backends(const std::vector<BackendConfig>& wanted, Nanos now);
    void apply_models(const std::vector<std::shared_ptr<const ModelConfig>>& wanted, Nanos now);
    void configure_model(const ModelConfig& model, Nanos now);
    void prime_latencies(const ModelConfig& model);
    void prime_memory(const ModelConfig& model, const ModelConfig* before);
    void watch_headers();
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
    void note_arrival(const http2::Event& event, Nanos now);
    void take_backend_events(ConnectionId id, Connection* connection, Nanos now);
    void lose_connection(ConnectionId id, const std::string& reason, Nanos now);
    void bury_connection(ConnectionId id, Connection* connection);

    // admit.cc
    void take_request(ConnectionId id, Connection* connection, http2::Event* event, Nanos now,
                      bool waited = false);
    const ModelConfig* find_model(Arriving* arriving, Status* status, Nanos now);
    Status admit(Arriving* arriving, RequestId* admitted, Nanos now);
    Status prepare(const ModelConfig& model, const Arriving& arriving, RequestRecord* record);
    Status submit(const ModelConfig& model, const Arriving& arriving, RequestId id,
                  RequestRecord* record, Nanos now);
    std::uint32_t tenant_of(const Arriving& arriving) const;
    std::string_view tenant_name(std::uint32_t index) const;
    bool charge_overhead(RequestRecord* record, std::uint64_t bytes);
    Status pin_to_regions(const ModelConfig& model, const RequestRecord& record,
                          std::uint32_t* backend) const;

    // loading.cc
    void apply_loadable(const WantedState& next, Nanos now);
    std::vector<bool> available_backends() const;
    Status ask_to_park(const Arriving& arriving, Nanos now);
    std::uint64_t bytes_to_park(const Arriving& arriving);
    Nanos parked_deadline(const Arriving& arriving) const;
    void park_request(const Arriving& arriving, Connection* connection, http2::Event* event,
                      Nanos now);
    void park_message(const Arriving& arriving, ClientStream* stream, Connection* connection,
                      http2::Event* event, Nanos now);
    void park_behind(ClientStream* stream, Connection* connection, http2::Event* event, Nanos now);
    ParkedId park(ParkedCall&& call, Nanos now);
    ParkedCall take_parked(ParkedId id, std::uint64_t* counter);
    void forget_parked(ParkedId id);
    bool settle_parked(Nanos now);
    void settle_due(ParkedId id, Nanos now);
    void admit_parked(ParkedId id, Nanos now);
    void refuse_parked(ParkedId id, const Status& status, std::uint64_t* counter, Nanos now);
    void resume_stream(ClientStreamId id, Nanos now);
    void tell_wanted(LoadingModel* model, Nanos now);

    // streams.cc
    void open_client_stream(ConnectionId id, Connection* connection, http2::Event* event);
    void take_message(ConnectionId id, Connection* connection, http2::Event* event, Nanos now);
    void start_message(ClientStreamId id, ClientStream* stream, Connection* connection,
                       http2::Event* event, Nanos now, bool waited = false);
    void refuse_message(ClientStream* stream, Connection* connection, const http2::Event& event,
                        const Arriving& arriving, const Status& status);
    void requests_ended(ClientStreamId id, Nanos now);
    bool reads_slowly(const ClientStream& stream, const Connection& connection) const;
    bool must_wait(const ClientStream& stream, const Connection& connection) const;
    void stall(ClientStreamId id, ClientStream* stream, Connection* connection);
    std::uint32_t resume_stalled(ConnectionId id, Connection* connection, Nanos now);
    void send_in_order(ClientStream* stream, Connection* connection, std::uint64_t order,
                       Pieces&& message);
    void answer_in_stream(const engine::Action& action, RequestRecord* request,
                          Connection* connection, Nanos now);
    void forget_in_stream(RequestRecord* request, Nanos now);
    void finish_if_done(ClientStreamId id, ClientStream* stream, Nanos now);
    // Without a status the client is gone.
    void end_client_stream(ClientStreamId id, const Status* status, Nanos now);
    void end_all_streams(const Status& status, Nanos now);
    void expire_streams(Nanos now);

    // backend_streams.cc
    void dispatch_streamed(const engine::Action& action, RequestRecord* request, Nanos now);
    BackendStreamId backend_stream_for(ClientStreamId client, std::uint32_t backend,
                                       bool decoupled);
    bool takes_new(std::uint32_t model, std::uint32_t backend) const;
    void retire_backend_streams(Nanos now);
    void retire_backend_stream(BackendStream* stream, Nanos now);
    void retire_used_streams(Nanos now);
    void take_stream_message(ConnectionId id, Connection* connection, http2::Event* event,
                             Nanos now);
    void note_stream_metadata(BackendStreamId id, http2::AnswerMetadata* answer);
    void stream_reply_arrived(BatchId id, BatchRecord* batch, const kserve::StreamReply& reply,
                              Nanos now);
    void stream_ended_by_reply(const BatchRecord& batch, const kserve::StreamReply& reply,
                               Nanos now);
    void pay_windows();
    void pay_window(BackendStreamId id);
    void backend_stream_ended(BackendStreamId id, Status status, CallEnd end, Nanos now);
    void let_go_backend_stream(BackendStreamId id, Nanos now);
    void reset_backend_stream(BackendStreamId id, Nanos now);
    void reset_lingering(Nanos now);
    void leave_backend_stream(const BatchRecord& batch);

    // execution/dispatch.cc
    void carry_out_actions(Nanos now);
    void dispatch(const engine::Action& action, Nanos now);
    void dispatch_unsent(const engine::Action& action, Nanos now);
    BatchId open_batch(const engine::Action& action, ConnectionId id, Connection* connection,
                       Nanos now);
    void abandon(const engine::Action& action, Nanos now);
    Connection* choose_connection(std::uint32_t backend, ConnectionId* id);
    void take_reply(Connection* connection, http2::Event* event, Nanos now);
    static CallEnd call_end(const Connection& connection, const http2::Event& event);
    void reply_failed(const BatchRecord& batch, Status status, CallEnd end, Nanos now);
    void reply_arrived(const BatchRecord& batch, const BufferRef& message, Nanos now);
    void note_metadata(const BatchRecord& batch, http2::AnswerMetadata&& answer);
    void note_failure(const BatchRecord& batch, Status status);
    void note_late(const BatchRecord& batch);
    void stay_awake(const BatchRecord& batch, Nanos now);
    void close_batch(BatchId id, BatchRecord* batch);

    // sharing.cc
    std::unique_ptr<SharedBatch> share_tensors(const engine::Action& action,
                                               kserve::SharedTensors* tensors);
    void share_inputs(std::uint32_t rows_padded, SharedBatch* shared,
                      kserve::SharedTensors* tensors);
    void share_outputs(const ModelConfig& model, std::uint32_t rows_padded, SharedBatch* shared,
                       kserve::SharedTensors* tensors);
    void uncharge(SharedBatch* shared);
    bool end_shared_call(BatchRecord* batch, const http2::Event& event, Nanos now);
    bool place_outputs(const BatchRecord& batch, kserve::Reply* reply);
    void lose_shared_call(std::uint32_t backend, std::unique_ptr<SharedBatch> shared, Nanos now);
    void lose_region(std::uint32_t backend, const std::string& region);
    Nanos quarantine_end(const SharedBatch& shared, Nanos now) const;
    void date_quarantine(Nanos now);
    void release_quarantine(Nanos now);

    // answers.cc
    void answer(const engine::Action& action, Nanos now);
    bool put_reply_together(RequestRecord* request, Pieces* message, Status* status);
    void finish_request(RequestId id, RequestRecord* request, Connection* connection, Nanos now);
    std::string_view model_name(std::uint32_t model) const;

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
    Parking parking;
    std::vector<Backend> backends;  // by index
    std::vector<Leaving> leaving;
    std::map<std::string, std::vector<std::uint32_t>, std::less<>> regions;
    std::map<std::string, std::uint32_t, std::less<>> tenants;  // the engine's index by name
    std::vector<std::string> tenant_names;                      // by that index

    Connections connections;
    ConnectionId cold = 0;
    std::uint32_t client_count = 0;
    SlotMap<RequestRecord> requests;
    SlotMap<BatchRecord> batches;
    std::vector<BatchId> batch_of_slot;  // by the slot in the engine's handle
    SlotMap<ClientStream> client_streams;
    SlotMap<BackendStream> backend_streams;
    ReplyGathering gathering;
    std::vector<BackendStreamId> unpaid_streams;    // that brought something in this turn
    std::vector<BackendStreamId> retiring_streams;  // that were used in it for the last time
    Pieces message_scratch;
    std::set<std::pair<Nanos, ClientStreamId>> stream_deadlines;
    // Half-closed streams, and when they are reset: in the order of their client streams' ends.
    std::deque<std::pair<Nanos, BackendStreamId>> lingering;  // and some that have ended
    std::size_t lingering_open = 0;
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
    std::vector<Quarantined> quarantine;
    Nanos quarantine_due = kNever;          // when the first of them is free
    std::set<std::uint32_t> wired_outputs;  // models whose outputs are not what the catalog says
    std::uint64_t shared_calls = 0;
    std::vector<kserve::RequestRows> merge_scratch;
    std::vector<kserve::ReplyRows> reply_scratch;
};

}  // namespace infersched::gateway
