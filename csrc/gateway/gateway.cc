// The turn of the loop, and the thin public face over State.
#include "gateway/gateway.h"

#include <algorithm>

#include <set>
#include "base/shared_blocks.h"

#include "gateway/state.h"

namespace infersched::gateway {

namespace {

constexpr std::string_view kService = "/inference.GRPCInferenceService/";

std::vector<http2::Route> inference_routes() {
    const std::string service(kService);
    return {{service + "ModelInfer", http2::RouteKind::kUnary, {}},
            {service + "ModelStreamInfer", http2::RouteKind::kMessageStream, {}}};
}

}  // namespace

Gateway::State::State(engine::CountersPage* counters)
    : page(counters), engine(counters), reader(&signatures) {
    server_config.routes = inference_routes();
    server_config.watched_headers = {std::string(kErrorHeader)};
    server_config.internal_headers = {"infersched-peer", "infersched-principal"};
}

Gateway::Gateway(engine::CountersPage* page) : state_(std::make_unique<State>(page)) {}
Gateway::~Gateway() = default;

std::string Gateway::apply(const WantedState& wanted, Nanos now) noexcept {
    return state_->apply(wanted, now);
}

void Gateway::set_device(std::uint32_t device, const engine::DeviceMemory& memory,
                         Nanos now) noexcept {
    state_->engine.set_device(device, memory, now);
}

void Gateway::drain(Nanos deadline, Nanos now) noexcept { state_->begin_drain(deadline, now); }

bool Gateway::take_notice(Notice* notice) {
    if (state_->notices.empty()) return false;
    *notice = std::move(state_->notices.front());
    state_->notices.pop_front();
    return true;
}

ConnectionId Gateway::client_connected(const std::string& peer_address, Nanos now) noexcept {
    State& state = *state_;
    if (state.client_count >= state.wanted.limits.connections_max) return 0;
    Connection connection;
    connection.peer = Peer::kClient;
    connection.server = std::make_unique<http2::ServerSession>(&state.server_config, &state.budget);
    connection.peer_address = peer_address;
    connection.received_at = now;
    // No GOAWAY for one that comes during a drain: its calls get the typed refusal, its health
    // checks an answer.
    const ConnectionId id = state.connections.add(std::move(connection));
    ++state.client_count;
    ++state.page->connections_total;
    state.count_connections();
    state.connections.mark_dirty(id, state.connections.find(id));
    return id;
}

ConnectionId Gateway::backend_connected(std::uint32_t index, const std::string& address,
                                        Nanos now) noexcept {
    State& state = *state_;
    if (index >= state.backends.size()) return 0;
    Backend& backend = state.backends[index];
    // What was dialled before the last Apply may come after it.
    if (!backend.in_use || backend.config.state == BackendState::kDown ||
        backend.config.address != address)
        return 0;
    http2::ClientConfig config;
    config.authority = backend.config.address;
    config.compression = backend.config.compression;
    config.encrypted = backend.config.encrypted;
    config.budget = &state.budget;
    Connection connection;
    connection.peer = Peer::kBackend;
    connection.client = std::make_unique<http2::ClientSession>(config);
    connection.backend = index;
    connection.received_at = now;
    const ConnectionId id = state.connections.add(std::move(connection));
    backend.connections.push_back(id);
    state.count_connections();
    state.connections.mark_dirty(id, state.connections.find(id));
    return id;
}

ConnectionId Gateway::cold_connected(Nanos now) noexcept {
    State& state = *state_;
    // One that is retiring keeps the streams it has.
    Connection* before = state.connections.find(state.cold);
    if (before != nullptr && !before->retiring) {
        state.connections.mark_closing(state.cold, before);
        state.lose_connection(state.cold, "replaced", now);
    }
    http2::ClientConfig config;
    config.authority = "control-plane";
    Connection connection;
    connection.peer = Peer::kCold;
    connection.client = std::make_unique<http2::ClientSession>(config);
    connection.received_at = now;
    state.cold = state.connections.add(std::move(connection));
    state.connections.mark_dirty(state.cold, state.connections.find(state.cold));
    return state.cold;
}

void Gateway::received(ConnectionId id, Span bytes, Nanos now) noexcept {
    State& state = *state_;
    Connection* connection = state.connections.find(id);
    if (connection == nullptr || connection->lost) return;
    connection->received_at = now;
    const bool sound = connection->server ? connection->server->feed(bytes, now)
                                          : connection->client->feed(bytes, now);
    if (!sound) state.connections.mark_closing(id, connection);
    if (connection->server) {
        const std::uint64_t resets = connection->server->resets_received();
        state.page->streams_reset_total += resets - connection->resets_counted;
        connection->resets_counted = resets;
    }
    state.connections.mark_active(id, connection);
}

Space Gateway::receive_space(ConnectionId id) noexcept {
    Connection* connection = state_->connections.find(id);
    if (connection == nullptr || connection->lost) return {};
    return connection->server ? connection->server->receive_space()
                              : connection->client->receive_space();
}

void Gateway::connection_lost(ConnectionId id, const std::string& reason, Nanos now) noexcept {
    state_->lose_connection(id, reason, now);
}

void Gateway::retire(ConnectionId id) noexcept {
    Connection* connection = state_->connections.find(id);
    if (connection == nullptr || connection->lost) return;
    connection->retiring = true;
    state_->connections.mark_active(id, connection);
}

bool Gateway::turn(Nanos now) noexcept {
    State& state = *state_;
    // An idle loop is not late: only gaps while a wake was due count.
    const Nanos due = std::min(state.engine_wake, state.next_look());
    const Nanos lag = due == kNever ? 0 : std::max<Nanos>(now - due, 0);
    state.loop_was_late = lag > kLoopLateNs;
    state.page->loop_lag_max_ns =
        std::max(state.page->loop_lag_max_ns, static_cast<std::uint64_t>(lag));
    ++state.page->loop_turns;
    bool left_over = state.take_events(now);
    if (state.parking.has_work(now)) left_over |= state.settle_parked(now);
    state.probe_backends(now);
    if (!state.leaving.empty()) state.release_leaving(now);
    if (now >= state.quarantine_due) state.release_quarantine(now);
    state.engine.step(now);
    state.carry_out_actions(now);
    state.expire_streams(now);
    state.reset_lingering(now);
    state.check_drained(now);
    state.page->host_bytes = state.budget.used;
    left_over |= now < state.awake_until;
    left_over |= state.engine.needs_step() || !state.connections.active.empty();
    return left_over;
}

Nanos Gateway::next_wake() const {
    Nanos next = std::min({state_->engine_wake, state_->next_look(), state_->quarantine_due,
                           state_->parking.next_deadline()});
    if (!state_->stream_deadlines.empty())
        next = std::min(next, state_->stream_deadlines.begin()->first);
    if (!state_->lingering.empty()) next = std::min(next, state_->lingering.front().first);
    if (state_->draining && !state_->drained) next = std::min(next, state_->drain_deadline);
    return next;
}

void Gateway::take_dirty(std::vector<ConnectionId>* ids) {
    ids->clear();
    ids->swap(state_->connections.dirty);
    for (const ConnectionId id : *ids)
        if (Connection* connection = state_->connections.find(id)) connection->dirty = false;
}

void Gateway::take_closing(std::vector<ConnectionId>* ids) {
    ids->clear();
    ids->swap(state_->connections.closing);
}

void Gateway::take_retired(std::vector<ConnectionId>* ids) {
    ids->clear();
    ids->swap(state_->connections.retired);
}

bool Gateway::wants_turn() const {
    return !state_->connections.dirty.empty() || !state_->connections.active.empty() ||
           state_->drain_complete();
}

Nanos Gateway::gather_ns(Nanos started, Nanos now) {
    const Nanos until = std::min(state_->gathering.gather_until(started), next_wake());
    if (until <= now) return 0;
    state_->page->loop_gathering_ns += static_cast<std::uint64_t>(until - now);
    return until - now;
}

void Gateway::pull(ConnectionId id, std::size_t bytes_max, std::vector<Slice>* out) noexcept {
    State& state = *state_;
    Connection* connection = state.connections.find(id);
    if (connection == nullptr || connection->lost) return;
    const std::size_t before = out->size();
    bool finished = false;
    if (connection->server) {
        connection->server->pull(bytes_max, out);
        finished = connection->server->finished();
    } else {
        connection->client->pull(bytes_max, out);
        finished = connection->client->finished();
    }
    // Streams that wait to be read look again when something has left.
    if (connection->has_events() || (!connection->stalled.empty() && out->size() > before))
        state.connections.mark_active(id, connection);
    if (finished) state.connections.mark_closing(id, connection);
    std::size_t bytes = 0;
    for (std::size_t i = before; i < out->size(); ++i) bytes += (*out)[i].bytes.size;
    if (bytes >= bytes_max) state.connections.mark_dirty(id, connection);
}

bool Gateway::wants_read(ConnectionId id) const {
    const Connection* connection = state_->connections.find(id);
    return connection != nullptr && (!connection->server || connection->server->wants_read());
}

std::uint64_t Gateway::generation() const { return state_->wanted.generation; }
bool Gateway::draining() const { return state_->draining; }

std::vector<BackendStatus> Gateway::backends() const {
    std::vector<BackendStatus> statuses;
    for (const Backend& backend : state_->backends)
        if (backend.in_use)
            statuses.push_back(
                {backend.config.index, static_cast<std::uint32_t>(backend.connections.size()),
                 backend.config.state == BackendState::kDown ? 0 : backend.config.connections,
                 backend.inflight_batches, backend.inflight_rows,
                 backend.available                                ? BackendState::kServing
                 : backend.config.state == BackendState::kServing ? BackendState::kDown
                                                                  : backend.config.state,
                 backend.config.address});
    return statuses;
}

std::vector<BatchStatus> Gateway::batches(Nanos now) const {
    std::vector<BatchStatus> statuses;
    state_->batches.each([&](BatchId, const BatchRecord& batch) {
        statuses.push_back({batch.model, batch.backend,
                            static_cast<std::uint32_t>(batch.members.size()), batch.rows,
                            now - batch.dispatched_at, batch.memory_limited});
    });
    return statuses;
}

engine::QueueStatus Gateway::queue_status(std::uint32_t model) const {
    return state_->engine.queue_status(model);
}

std::vector<std::uint32_t> Gateway::models() const {
    std::vector<std::uint32_t> indices;
    for (const auto& model : state_->wanted.models) indices.push_back(model->index);
    return indices;
}

std::vector<std::uint32_t> Gateway::placements(std::uint32_t model) const {
    std::vector<std::uint32_t> backends;
    if (const ModelConfig* config = state_->catalog.at(model))
        for (const engine::Placement& placement : config->placements)
            backends.push_back(placement.backend);
    return backends;
}

std::vector<std::uint32_t> Gateway::devices(std::uint32_t model) const {
    std::set<std::uint32_t> named;
    if (const ModelConfig* config = state_->catalog.at(model))
        for (const engine::Placement& placement : config->placements)
            named.insert(placement.devices.begin(), placement.devices.end());
    return {named.begin(), named.end()};
}

std::uint64_t Gateway::host_bytes() const { return state_->budget.used; }
std::uint32_t Gateway::client_connections() const { return state_->client_count; }
SharedMemoryStatus Gateway::shared_memory() const {
    return {shared_blocks().used_bytes(), shared_blocks().backed_bytes(), state_->quarantine.size(),
            state_->shared_calls};
}

std::vector<LoadingStatus> Gateway::loading() const {
    std::vector<LoadingStatus> statuses;
    state_->parking.each_model([&](const LoadingModel& model) {
        if (model.waiting > 0)
            statuses.push_back({model.wanted.name, model.waiting, model.bytes,
                                state_->parking.find(model.first)->arrival});
    });
    return statuses;
}

const engine::Engine& Gateway::scheduler() const { return state_->engine; }

}  // namespace infersched::gateway
