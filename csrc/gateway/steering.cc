// What the control plane wants is made so: models, backends, limits, drain.
#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>
#include <utility>

#include "gateway/state.h"

namespace infersched::gateway {
namespace {

const MemoryPrior* prior_of(const ModelConfig& model, std::uint32_t backend) {
    for (const MemoryPrior& prior : model.memory_priors)
        if (prior.backend == backend) return &prior;
    return nullptr;
}

// On the same devices.
bool is_placed(const ModelConfig& model, const engine::Placement& placement) {
    for (const engine::Placement& other : model.placements)
        if (other.backend == placement.backend) return other.devices == placement.devices;
    return false;
}

std::string check_placements(const ModelConfig& model) {
    std::vector<std::uint32_t> named;
    for (const engine::Placement& placement : model.placements) {
        if (placement.backend >= engine::kCountersBackendsMax)
            return "model '" + model.schema.name + "' is placed on unknown backend index " +
                   std::to_string(placement.backend);
        if (std::find(named.begin(), named.end(), placement.backend) != named.end())
            return "model '" + model.schema.name + "' is placed on backend index " +
                   std::to_string(placement.backend) + " more than once";
        named.push_back(placement.backend);
        for (const std::uint32_t device : placement.devices)
            if (device >= engine::kDevicesMax)
                return "model '" + model.schema.name + "' is placed on device index " +
                       std::to_string(device) + ", which is not below " +
                       std::to_string(engine::kDevicesMax);
    }
    return {};
}

std::string check_tenants(const std::vector<Tenant>& tenants) {
    std::set<std::string_view> names;
    for (const Tenant& tenant : tenants) {
        if (!(tenant.weight > 0) || !std::isfinite(tenant.weight))
            return "the weight of tenant '" + tenant.name + "' is not a positive number";
        if (!names.insert(tenant.name).second) return "tenant '" + tenant.name + "' is given twice";
    }
    if (tenants.size() >= engine::kTenantsMax)
        return std::to_string(tenants.size()) + " tenants are given, at most " +
               std::to_string(engine::kTenantsMax - 1) + " are told apart";
    return {};
}

std::string check(const WantedState& wanted) {
    std::vector<bool> indices(engine::kCountersModelsMax);
    std::set<std::pair<std::string_view, std::string_view>> names;
    for (const std::shared_ptr<const ModelConfig>& entry : wanted.models) {
        const ModelConfig& model = *entry;
        if (model.index >= engine::kCountersModelsMax)
            return "model index " + std::to_string(model.index) + " of '" + model.schema.name +
                   "' is not below " + std::to_string(engine::kCountersModelsMax);
        if (indices[model.index])
            return "model index " + std::to_string(model.index) + " is given twice";
        indices[model.index] = true;
        if (!names.emplace(model.schema.name, model.schema.version).second)
            return "model '" + model.schema.name + "' version " + model.schema.version +
                   " is given twice";
        std::string error = check_placements(model);
        if (!error.empty()) return error;
    }
    std::vector<bool> backends(engine::kCountersBackendsMax);
    for (const BackendConfig& backend : wanted.backends) {
        if (backend.index >= engine::kCountersBackendsMax)
            return "backend index " + std::to_string(backend.index) + " of '" + backend.address +
                   "' is not below " + std::to_string(engine::kCountersBackendsMax);
        if (backends[backend.index])
            return "backend index " + std::to_string(backend.index) + " is given twice";
        backends[backend.index] = true;
    }
    std::set<std::string_view> loadable;
    for (const LoadableModel& model : wanted.loadable)
        if (!loadable.insert(model.name).second)
            return "loadable model '" + model.name + "' is given twice";
    return check_tenants(wanted.limits.tenants);
}

}  // namespace

std::string Gateway::State::apply(const WantedState& next, Nanos now) {
    std::string error = check(next);
    if (!error.empty()) return error;
    apply_limits(next.limits);
    apply_tenants(next.limits);
    apply_backends(next.backends, now);
    regions.clear();
    for (const SharedMemoryRegion& region : next.regions)
        regions.emplace(region.name, region.backends);
    apply_models(next.models, now);
    apply_loadable(next, now);
    wanted = next;
    watch_headers();
    // The engine shows every backend it has heard of.
    for (std::uint32_t index = 0; index < backends.size(); ++index)
        page->backends[index].in_use = backends[index].in_use;
    page->generation = next.generation;
    return {};
}

void Gateway::State::apply_limits(const Limits& limits) {
    server_config.message_bytes_max = limits.message_bytes_max;
    server_config.streams_max = limits.streams_per_connection_max;
    server_config.forward_metadata = limits.forward_metadata;
    server_config.response_compression = limits.response_compression;
    budget.max = limits.host_bytes_max;
}

// A tenant keeps its account in the engine as long as it keeps its place in the list.
void Gateway::State::apply_tenants(const Limits& limits) {
    if (limits.tenants == wanted.limits.tenants) return;
    tenants.clear();
    tenant_names.assign(1, {});
    std::vector<double> weights = {1.0};
    for (const Tenant& tenant : limits.tenants) {
        if (tenant.name.empty()) {
            weights.front() = tenant.weight;
            continue;
        }
        tenants.emplace(tenant.name, static_cast<std::uint32_t>(weights.size()));
        weights.push_back(tenant.weight);
        tenant_names.push_back(tenant.name);
    }
    engine.set_tenants(weights);
}

void Gateway::State::apply_backends(const std::vector<BackendConfig>& next, Nanos now) {
    std::vector<bool> kept(engine::kCountersBackendsMax);
    for (const BackendConfig& config : next) {
        kept[config.index] = true;
        if (config.index >= backends.size()) backends.resize(config.index + 1);
        Backend& backend = backends[config.index];
        const bool moved = backend.in_use && backend.config.address != config.address;
        const bool down = config.state == BackendState::kDown;
        backend.in_use = true;
        backend.config = config;
        if (moved || down) {
            const std::vector<ConnectionId> ids = backend.connections;
            for (const ConnectionId id : ids) {
                if (Connection* connection = connections.find(id))
                    connections.mark_closing(id, connection);
                lose_connection(id, moved ? "the address changed" : "taken down", now);
            }
        }
        refresh_backend(config.index, now);
    }
    for (std::uint32_t index = 0; index < backends.size(); ++index) {
        if (!backends[index].in_use || kept[index]) continue;
        backends[index].in_use = false;
        const std::vector<ConnectionId> ids = backends[index].connections;
        for (const ConnectionId id : ids) {
            if (Connection* connection = connections.find(id))
                connections.mark_closing(id, connection);
            lose_connection(id, "removed from the configuration", now);
        }
        refresh_backend(index, now);
    }
    const auto shares = [](const Backend& backend) {
        return backend.in_use && !backend.config.shared_region.empty();
    };
    const bool any = std::any_of(backends.begin(), backends.end(), shares);
    server_config.shared_alignment = any ? kserve::large_tensor_offset : nullptr;
    date_quarantine(now);
}

void Gateway::State::apply_models(const std::vector<std::shared_ptr<const ModelConfig>>& next,
                                  Nanos now) {
    if (next == wanted.models) return;
    std::vector<bool> kept(engine::kCountersModelsMax);
    struct Change {
        const ModelConfig* now;
        const ModelConfig* before;  // of the same model, or none
    };
    std::vector<Change> changed;
    for (const std::shared_ptr<const ModelConfig>& model : next) {
        kept[model->index] = true;
        const ModelConfig* known = catalog.at(model->index);
        if (known == model.get()) continue;
        wired_outputs.erase(model->index);
        // Another model has the number now: what is queued for the old one cannot run any more.
        if (known != nullptr && (known->schema.name != model->schema.name ||
                                 known->schema.version != model->schema.version)) {
            remove_model(model->index, now);
            known = nullptr;
        }
        changed.push_back({model.get(), known});
    }
    for (const std::shared_ptr<const ModelConfig>& model : wanted.models)
        if (!kept[model->index]) remove_model(model->index, now);
    catalog.replace(next);
    for (const Change& model : changed) {
        configure_model(*model.now, now);
        prime_latencies(*model.now);
        prime_memory(*model.now, model.before);
    }
    retire_backend_streams(now);
}

// A placement that has run batches has no need of what was known before.
void Gateway::State::prime_latencies(const ModelConfig& model) {
    std::vector<std::uint32_t> observed;
    for (const engine::Placement& placement : model.placements)
        if (engine.latency_status(model.index, placement.backend).observations > 0)
            observed.push_back(placement.backend);
    for (const LatencyPrior& prior : model.priors)
        if (std::find(observed.begin(), observed.end(), prior.backend) == observed.end())
            engine.prime_latency(model.index, prior.backend, prior.rows, prior.mean_ns,
                                 prior.batches);
}

// What was said once is not said again: since then something was learned, or the server was started
// anew. What is fixed no more is a beginning like any other.
void Gateway::State::prime_memory(const ModelConfig& model, const ModelConfig* before) {
    for (const engine::Placement& placement : model.placements) {
        const MemoryPrior* const told = prior_of(model, placement.backend);
        const MemoryPrior* const was =
            before == nullptr ? nullptr : prior_of(*before, placement.backend);
        if (told == nullptr && (was == nullptr || !was->fixed)) continue;
        MemoryPrior prior = told == nullptr ? *was : *told;
        if (told == nullptr) {
            prior.fixed = false;
            prior.rows_high = 0;
        } else if (was != nullptr && *was == *told && is_placed(*before, placement)) {
            continue;
        }
        for (const std::uint32_t device : placement.devices)
            engine.prime_memory(model.index, device, prior.base_bytes, prior.bytes_per_row,
                                prior.rows_high, prior.fixed);
    }
}

// The headers that are looked at besides those passed on.
void Gateway::State::watch_headers() {
    std::set<std::string> names = {std::string(kErrorHeader)};
    if (!wanted.limits.tenant_key.empty()) names.insert(wanted.limits.tenant_key);
    for (const std::shared_ptr<const ModelConfig>& model : wanted.models)
        names.insert(model->key_headers.begin(), model->key_headers.end());
    server_config.watched_headers.assign(names.begin(), names.end());
}

void Gateway::State::remove_model(std::uint32_t index, Nanos now) {
    engine.configure_model(index, engine::ModelPolicy(), {}, now);
    leaving.erase(std::remove_if(leaving.begin(), leaving.end(),
                                 [index](const Leaving& entry) { return entry.model == index; }),
                  leaving.end());
}

// Hands the model to the engine, less the placements that were seen leaving.
void Gateway::State::configure_model(const ModelConfig& model, Nanos now) {
    std::vector<engine::Placement> placements = model.placements;
    for (engine::Placement& placement : placements)
        for (const Leaving& entry : leaving)
            if (entry.model == model.index && entry.backend == placement.backend)
                placement.ready = false;
    engine.configure_model(model.index, model.policy, placements, now);
}

// Tells the engine when a backend becomes or ceases to be usable.
void Gateway::State::refresh_backend(std::uint32_t index, Nanos now) {
    if (index >= backends.size()) return;
    Backend& backend = backends[index];
    bool available = false;
    if (backend.in_use && backend.config.state == BackendState::kServing)
        for (const ConnectionId id : backend.connections) {
            const Connection* connection = connections.find(id);
            available |= connection != nullptr && connection->usable();
        }
    if (available == backend.available) return;
    backend.available = available;
    engine.set_backend(index, available, now);
    if (parking.size() > 0) parking.look_again(wanted.models, available_backends());
}

void Gateway::State::mark_leaving(std::uint32_t model, std::uint32_t backend, Nanos now) {
    for (Leaving& entry : leaving)
        if (entry.model == model && entry.backend == backend) {
            entry.until = now + kLeavingHoldNs;
            return;
        }
    leaving.push_back({model, backend, now + kLeavingHoldNs});
    notices.push_back({Notice::Kind::kBackendLeaving, backend, model, false, 0, {}});
    configure_model(*catalog.at(model), now);
}

void Gateway::State::release_leaving(Nanos now) {
    for (std::size_t i = 0; i < leaving.size();) {
        if (leaving[i].until > now) {
            ++i;
            continue;
        }
        const std::uint32_t model = leaving[i].model;
        leaving.erase(leaving.begin() + static_cast<std::ptrdiff_t>(i));
        if (const ModelConfig* config = catalog.at(model)) configure_model(*config, now);
    }
}

void Gateway::State::begin_drain(Nanos deadline, Nanos) {
    drain_deadline = deadline;
    drained = false;
    if (draining) return;
    draining = true;
    engine.set_draining(true);
    parking.drain();
    connections.each([this](ConnectionId id, Connection& connection) {
        if (!connection.server || connection.lost) return;
        connection.server->begin_drain();
        connections.mark_dirty(id, &connection);
    });
}

void Gateway::State::check_drained(Nanos now) {
    if (!draining || drained) return;
    if (now < drain_deadline && !drain_complete()) return;
    while (parking.has_work(now)) settle_parked(now);
    const std::uint64_t unanswered = engine.requests_inflight();
    if (unanswered > 0) {
        engine.fail_all(engine::Reason::kDraining, now);
        carry_out_actions(now);
    }
    end_all_streams(refusal_status({0, engine::Reason::kDraining, 0}, {}, {}), now);
    drained = true;
    notices.push_back({Notice::Kind::kDrained, 0, 0, false, unanswered, {}});
}

// All is answered, and nothing of an answer waits for its client; not reported yet.
bool Gateway::State::drain_complete() {
    bool written = draining && !drained && engine.requests_inflight() == 0 && parking.size() == 0;
    if (!written) return false;
    connections.each([&](ConnectionId, const Connection& connection) {
        if (connection.server && !connection.lost)
            written = written && connection.server->unsent_answer_bytes() == 0;
    });
    return written;
}

void Gateway::State::count_connections() {
    page->client_connections = client_count;
    for (std::uint32_t index = 0; index < backends.size(); ++index) {
        std::uint64_t open = 0;
        for (const ConnectionId id : backends[index].connections) {
            const Connection* connection = connections.find(id);
            open += connection != nullptr && connection->settled ? 1 : 0;
        }
        page->backends[index].connections_open = open;
    }
}

}  // namespace infersched::gateway
