// Step 1 of a turn: events that the sessions recorded become submits, cancels, replies and relays.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {

constexpr Nanos kLongestTimeoutNs = kNever / 2;
// After this the budget may have room again: as the session says when DATA finds none.
constexpr Nanos kHostMemoryRetryNs = 100 * kMillisecond;

// The `timeout` parameter; 0: none.
Nanos timeout_ns(const kserve::SchedulingParameters& scheduling) {
    if (scheduling.timeout_us <= 0) return 0;
    Nanos timeout = 0;
    if (__builtin_mul_overflow(scheduling.timeout_us, kMicrosecond, &timeout))
        timeout = kLongestTimeoutNs;
    return timeout;
}

// The earlier of the gRPC deadline and the request's own budget.
Nanos request_deadline(const http2::Event& event, Nanos budget) {
    if (budget == 0) return event.deadline;
    return std::min(event.deadline, add_saturating(event.arrival, budget));
}

// A sequence's state lives at one backend: until sequences are scheduled (Part 2) all of a model's
// go to the first ready one.
std::uint32_t sequence_backend(const ModelConfig& model) {
    for (const engine::Placement& placement : model.placements)
        if (placement.ready) return placement.backend;
    return engine::kNoBackend;
}

void count_refusal(engine::CountersPage* page, std::uint32_t model, engine::Reason reason) {
    engine::ModelCounters& counters = page->models[model];
    ++counters.refused;
    ++counters.outcomes[static_cast<std::size_t>(engine::Outcome::kRefused)]
                       [static_cast<std::size_t>(reason)];
}

void count_invalid(engine::CountersPage* page, std::uint32_t model) {
    count_refusal(page, model, engine::Reason::kInvalid);
}

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
    http2::Event event;
    while (connection->server->next_event(&event)) {
        switch (event.kind) {
            case http2::EventKind::kRequest:
                take_request(id, connection, &event, now);
                if (++started >= kRequestsPerTurnMax && connection->server->has_events())
                    return true;
                break;
            case http2::EventKind::kCancelled:
                if (const RequestId request = connection->requests.find(event.stream)) {
                    if (RequestRecord* record = requests.find(request))
                        engine.cancel(record->handle, now);
                }
                break;
            default:
                relay_client_event(id, connection, &event);
        }
        event = http2::Event();
    }
    return false;
}

void Gateway::State::take_backend_events(ConnectionId id, Connection* connection, Nanos now) {
    http2::Event event;
    while (connection->client->next_event(&event)) {
        if (event.kind == http2::EventKind::kReply) {
            if (event.stream == connection->probe)
                connection->probe = 0;  // any answer proves life
            else
                take_reply(id, connection, &event, now);
        } else {
            relay_cold_event(connection, &event);
        }
        event = http2::Event();
    }
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

// Counts what a request holds besides its message. False: the budget is exhausted.
bool Gateway::State::charge_overhead(RequestRecord* record, std::uint64_t bytes) {
    const std::uint64_t held = record->prepared.bytes() + sizeof(RequestRecord);
    const std::uint64_t overhead = held - std::min(held, bytes);
    if (overhead > budget.room()) return false;
    budget.used += overhead;
    record->overhead = overhead;
    return true;
}

// The model a request is for; otherwise nullptr and `status`, counted.
const ModelConfig* Gateway::State::find_model(Span message, Status* status) {
    kserve::ModelName name;
    const ModelConfig* model = nullptr;
    bool decodes = kserve::peek_model(message, &name);
    if (decodes) {
        model = catalog.find(name.name, name.version, status, name.version_cut);
        // The names alone were read; prepare() reads the rest, where it comes to that.
        if (model == nullptr || model->schema.decoupled) decodes = reader.decodes(message);
    }
    if (!decodes) {
        ++page->undecodable_total;
        *status = Status::error(StatusCode::kInternal, "Unable to parse request");
        return nullptr;
    }
    if (model == nullptr) {
        // Without any model the catalog is not known yet: no backend was ever reached.
        if (wanted.models.empty())
            *status = refusal_status({0, engine::Reason::kNoBackend, 0}, name.id);
        ++page->unknown_model_total;
        return nullptr;
    }
    if (!model->schema.decoupled) return model;
    count_invalid(page, model->index);
    *status =
        Status::error(StatusCode::kUnimplemented,
                      "ModelInfer RPC doesn't support models with decoupled transaction policy");
    return nullptr;
}

void Gateway::State::take_request(ConnectionId id, Connection* connection, http2::Event* event,
                                  Nanos now) {
    Status status;
    const ModelConfig* model = find_model(event->message.span(), &status);
    if (model == nullptr) {
        refuse(id, connection, *event, status);
        return;
    }
    const RequestId request_id = requests.emplace();
    RequestRecord* record = requests.find(request_id);
    status = reader.prepare(event->message, model->schema, event->metadata, &record->prepared);
    if (!status.ok()) {
        count_invalid(page, model->index);
        refuse(id, connection, *event, status);
        requests.erase(request_id);
        return;
    }
    if (!charge_overhead(record, event->bytes)) {
        count_refusal(page, model->index, engine::Reason::kHostMemory);
        refuse(id, connection, *event,
               refusal_status({0, engine::Reason::kHostMemory, kHostMemoryRetryNs},
                              record->prepared.id()));
        requests.erase(request_id);
        return;
    }
    engine::Request request;
    request.user = request_id;
    request.model = model->index;
    request.rows = record->prepared.rows();
    request.signature = kserve::signature_id(*record->prepared.signature());
    request.bytes = event->bytes;
    request.priority = record->prepared.scheduling().priority;
    request.arrival = event->arrival;
    request.timeout_ns = timeout_ns(record->prepared.scheduling());
    // In Triton the parameter covers queueing only; the engine applies it so.
    request.deadline =
        model->policy.triton ? event->deadline : request_deadline(*event, request.timeout_ns);
    request.mergeable = record->prepared.mergeable();
    if (model->schema.sequence) request.pinned_backend = sequence_backend(*model);
    const engine::Admission admission = engine.submit(request, now);
    if (admission.handle == 0) {
        refuse(id, connection, *event, refusal_status(admission, record->prepared.id()));
        budget.used -= record->overhead;
        requests.erase(request_id);
        return;
    }
    record->connection = id;
    record->stream = event->stream;
    record->model = model->index;
    record->handle = admission.handle;
    record->bytes = event->bytes;
    record->arrival = event->arrival;
    record->metadata = std::move(event->metadata);
    connection->requests.insert(event->stream, request_id);
}

void Gateway::State::refuse(ConnectionId id, Connection* connection, const http2::Event& event,
                            const Status& status) {
    connection->server->refuse(event.stream, status);
    connection->server->release(event.bytes);
    connections.mark_dirty(id, connection);
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
