// A message becomes a request of the engine, or an error in Triton's words.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {

constexpr Nanos kLongestTimeoutNs = kNever / 2;
// After this the budget may have room again: as the session says when DATA finds none.
constexpr Nanos kHostMemoryRetryNs = 100 * kMillisecond;

void count_refusal(engine::CountersPage* page, std::uint32_t model, engine::Reason reason) {
    engine::ModelCounters& counters = page->models[model];
    ++counters.refused;
    ++counters.outcomes[static_cast<std::size_t>(engine::Outcome::kRefused)]
                       [static_cast<std::size_t>(reason)];
}

void count_invalid(engine::CountersPage* page, std::uint32_t model) {
    count_refusal(page, model, engine::Reason::kInvalid);
}

// What must agree besides the request itself: forwarded headers, and the model's key headers.
std::string_view agreeing_metadata(const ModelConfig& model, const Arriving& arriving,
                                   std::string* scratch) {
    if (model.key_headers.empty()) return arriving.metadata;
    *scratch = arriving.metadata;
    scratch->push_back('\0');  // no name is empty: here the forwarded ones end
    for (const std::string& key : model.key_headers)
        for (const auto& [name, value] : *arriving.headers) {
            if (name != key) continue;
            scratch->append(name).push_back('\0');
            scratch->append(value).push_back('\0');
        }
    return *scratch;
}

Status unknown_region(std::string_view name) {
    std::string text = "Unable to find shared memory region: '";
    text.append(name).append("'");
    return Status::error(StatusCode::kNotFound, std::move(text));
}

}  // namespace

// Of the `timeout` parameter; 0: none.
Nanos Arriving::budget_ns(std::int64_t timeout_us) {
    if (timeout_us <= 0) return 0;
    Nanos timeout = 0;
    if (__builtin_mul_overflow(timeout_us, kMicrosecond, &timeout)) timeout = kLongestTimeoutNs;
    return timeout;
}

// The earlier of the gRPC deadline and the request's own budget.
Nanos Arriving::deadline_within(Nanos budget) const {
    if (budget == 0) return deadline;
    return std::min(deadline, add_saturating(event->arrival, budget));
}

// What `earliest`, of all its deadlines, comes from.
LateBy Arriving::late_by(Nanos earliest) const {
    return deadline != kNever && deadline <= earliest ? LateBy::kCall : LateBy::kBudget;
}

void Gateway::State::take_request(ConnectionId id, Connection* connection, http2::Event* event,
                                  Nanos now, bool waited) {
    gathering.other_request_came(now);
    Arriving arriving;
    arriving.connection = id;
    arriving.stream = event->stream;
    arriving.event = event;
    arriving.deadline = event->deadline;
    arriving.metadata = event->metadata;
    arriving.headers = &event->headers;
    arriving.waited = waited;
    RequestId request = 0;
    const Status status = admit(&arriving, &request, now);
    if (request != 0) {
        requests.find(request)->metadata = shared_text(std::move(event->metadata));
        connection->requests.insert(event->stream, request);
        return;
    }
    if (status.ok()) {
        park_request(arriving, connection, event, now);
        return;
    }
    connection->server->refuse(event->stream, status);
    connection->server->release(event->bytes, event->window_bytes);
    connections.mark_dirty(id, connection);
}

// The model a request is for; otherwise nullptr and `status`, counted, which is OK where it has to
// wait until the model is loaded.
const ModelConfig* Gateway::State::find_model(Arriving* arriving, Status* status, Nanos now) {
    kserve::ModelName name;
    const Span message = arriving->event->message.span();
    const ModelConfig* model = nullptr;
    bool decodes = kserve::peek_model(message, &name);
    arriving->id = name.id;
    arriving->whole_id = name.whole_id;
    if (decodes) {
        model = catalog.find(name.name, name.version, status, name.version_cut);
        arriving->decoupled = model != nullptr && model->schema.decoupled;
        if (model == nullptr ? status->code == StatusCode::kNotFound
                             : parking.diverts(model->index))
            arriving->awaited = arriving->waited ? nullptr : parking.awaited(name.name);
        // The names alone were read; prepare() reads the rest, where it comes to that.
        if (model == nullptr || arriving->awaited != nullptr ||
            (arriving->decoupled && arriving->client_stream == 0))
            decodes = reader.decodes(message);
    }
    if (!decodes) {
        ++page->undecodable_total;
        *status = Status::error(StatusCode::kInternal, "Unable to parse request");
        return nullptr;
    }
    if (arriving->awaited != nullptr) {
        *status = ask_to_park(*arriving, now);
        return nullptr;
    }
    if (model == nullptr) {
        // Without any model the catalog is not known yet: no backend was ever reached.
        if (wanted.models.empty() && wanted.loadable.empty())
            *status = refusal_status({0, engine::Reason::kNoBackend, 0}, name.id, name.name);
        ++page->unknown_model_total;
        return nullptr;
    }
    if (!arriving->decoupled || arriving->client_stream != 0) return model;
    count_invalid(page, model->index);
    *status =
        Status::error(StatusCode::kUnimplemented,
                      "ModelInfer RPC doesn't support models with decoupled transaction policy");
    return nullptr;
}

// OK without `admitted`: it has to wait until its model is loaded. An undecodable message is the
// only one that fails with INTERNAL.
Status Gateway::State::admit(Arriving* arriving, RequestId* admitted, Nanos now) {
    Status status;
    const ModelConfig* model = find_model(arriving, &status, now);
    if (model == nullptr) return status;
    *admitted = requests.emplace();
    RequestRecord* record = requests.find(*admitted);
    status = prepare(*model, *arriving, record);
    if (status.ok()) status = submit(*model, *arriving, *admitted, record, now);
    if (!status.ok()) {
        budget.used -= record->overhead;
        requests.erase(*admitted);
        *admitted = 0;
    }
    return status;
}

Status Gateway::State::prepare(const ModelConfig& model, const Arriving& arriving,
                               RequestRecord* record) {
    std::string scratch;
    Status status = reader.prepare(arriving.event->message, model.schema,
                                   agreeing_metadata(model, arriving, &scratch), &record->prepared,
                                   budget.room());
    const bool no_room = status.code == StatusCode::kResourceExhausted;
    if (!status.ok() && !no_room) {
        count_invalid(page, model.index);
        return status;
    }
    if (no_room || !charge_overhead(record, arriving.event->bytes)) {
        count_refusal(page, model.index, engine::Reason::kHostMemory);
        return refusal_status({0, engine::Reason::kHostMemory, kHostMemoryRetryNs}, arriving.id,
                              model.schema.name);
    }
    return status;
}

Status Gateway::State::submit(const ModelConfig& model, const Arriving& arriving, RequestId id,
                              RequestRecord* record, Nanos now) {
    const kserve::SchedulingParameters& scheduling = record->prepared.scheduling();
    engine::Request request;
    if (!record->prepared.regions().empty()) {
        Status status = pin_to_regions(model, *record, &request.pinned_backend);
        if (!status.ok()) {
            count_invalid(page, model.index);
            return status;
        }
    }
    request.user = id;
    request.model = model.index;
    request.rows = record->prepared.rows();
    request.signature = kserve::signature_id(*record->prepared.signature());
    request.bytes = arriving.event->bytes;
    request.row_bytes = record->prepared.row_bytes();
    request.priority = scheduling.priority;
    request.arrival = arriving.event->arrival;
    if (arriving.waited) request.admissible_at = now;
    request.timeout_ns = Arriving::budget_ns(scheduling.timeout_us);
    // In Triton the parameter covers queueing only; the engine applies it so.
    request.deadline =
        model.policy.triton ? arriving.deadline : arriving.deadline_within(request.timeout_ns);
    request.mergeable = record->prepared.mergeable();
    request.tenant = tenant_of(arriving);
    if (model.schema.sequence) {
        request.sequence = scheduling.sequence;
        request.sequence_start = scheduling.sequence_start;
        request.sequence_end = scheduling.sequence_end;
        request.path = arriving.client_stream;
    }
    const engine::Admission admission = engine.submit(request, now);
    record->late_by = arriving.late_by(admission.deadline);
    if (admission.handle == 0)
        return refusal_status(admission, record->prepared.id(), model.schema.name,
                              tenant_name(request.tenant), record->late_by);
    record->connection = arriving.connection;
    record->stream = arriving.stream;
    record->client_stream = arriving.client_stream;
    record->model = model.index;
    record->handle = admission.handle;
    record->bytes = arriving.event->bytes;
    record->window_bytes = arriving.event->window_bytes;
    record->arrival = arriving.event->arrival;
    record->call_deadline = arriving.deadline;
    record->streamed =
        arriving.client_stream != 0 && (model.schema.decoupled || model.schema.sequence);
    record->ordered = arriving.client_stream != 0 && !model.schema.decoupled;
    return Status();
}

// Everybody who is not named in the configuration is one tenant, 0.
std::uint32_t Gateway::State::tenant_of(const Arriving& arriving) const {
    if (tenants.empty()) return 0;
    for (const auto& [name, value] : *arriving.headers) {
        if (name != wanted.limits.tenant_key) continue;
        const auto known = tenants.find(value);
        return known == tenants.end() ? 0 : known->second;
    }
    return 0;
}

// Empty: everybody else.
std::string_view Gateway::State::tenant_name(std::uint32_t index) const {
    return index < tenant_names.size() ? std::string_view(tenant_names[index]) : "";
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

// Of the backends that have all regions of the request, the one with the least to do.
Status Gateway::State::pin_to_regions(const ModelConfig& model, const RequestRecord& record,
                                      std::uint32_t* backend) const {
    for (const std::string_view name : record.prepared.regions())
        if (regions.find(name) == regions.end()) return unknown_region(name);
    bool best_ready = false;
    *backend = engine::kNoBackend;
    for (const engine::Placement& placement : model.placements) {
        const auto lacks = [&](std::string_view name) {
            const std::vector<std::uint32_t>& at = regions.find(name)->second;
            return std::find(at.begin(), at.end(), placement.backend) == at.end();
        };
        const auto& names = record.prepared.regions();
        if (placement.backend >= backends.size() || std::any_of(names.begin(), names.end(), lacks))
            continue;
        const Backend& candidate = backends[placement.backend];
        const bool ready = placement.ready && candidate.available;
        if (*backend != engine::kNoBackend &&
            (ready == best_ready ? candidate.inflight_rows >= backends[*backend].inflight_rows
                                 : !ready))
            continue;
        best_ready = ready;
        *backend = placement.backend;
    }
    return *backend == engine::kNoBackend ? unknown_region(record.prepared.regions().front())
                                          : Status();
}

}  // namespace infersched::gateway
