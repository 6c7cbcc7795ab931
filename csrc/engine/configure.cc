// Policies, placements and backends as they change.
#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/batching/load_rules.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

bool same_batching(const ModelPolicy& a, const ModelPolicy& b) {
    return a.in_use == b.in_use && a.merge == b.merge && a.rows_max == b.rows_max &&
           a.preferred_rows == b.preferred_rows && a.mandatory_rows == b.mandatory_rows;
}

bool same_levels(const ModelPolicy& a, const ModelPolicy& b) {
    if (a.triton == nullptr || b.triton == nullptr) return a.triton == b.triton;
    return a.rows_max == b.rows_max && *a.triton == *b.triton;
}

bool named(const std::vector<Placement>& placements, std::uint32_t backend) {
    return std::any_of(placements.begin(), placements.end(),
                       [=](const Placement& p) { return p.backend == backend; });
}

// What domains and components are made of.
struct Arrangement {
    bool in_use = false;
    bool levels = false;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> placements;  // backend, executor

    bool operator!=(const Arrangement& other) const {
        return in_use != other.in_use || levels != other.levels || placements != other.placements;
    }
};

// Of a model that was never arranged: that of none.
Arrangement arrangement(const ModelState& model) {
    Arrangement found;
    if (!model.known) return found;
    found.in_use = model.policy.in_use;
    found.levels = model.policy.priority_levels > 1;
    for (const PlacementState& p : model.placements) {
        found.placements.push_back({p.backend, p.configured ? p.executor : kNoExecutor - 1});
    }
    return found;
}

// What waits, by the levels and the bound of the age that hold now.
void list_ages(ModelState& model, SlotMap<RequestRecord>& requests) {
    model.ages.clear();
    if (model.policy.queue_age_max_ns <= 0) return;
    for (std::uint32_t slot = model.by_age.first; slot != kNoSlot;
         slot = requests[slot].in_model.next) {
        model.ages.add(requests, slot);
    }
}

}  // namespace

// Placements that are no longer named are kept, unconfigured, until their last batch is back.
void Core::configure_placements(std::uint32_t index, const std::vector<Placement>& placements,
                                Nanos now) {
    ModelState& model = models_[index];
    std::vector<PlacementState> next;
    next.reserve(placements.size());
    bool moved = false;
    for (const Placement& wanted : placements) {
        PlacementState* known = model.placement(wanted.backend);
        PlacementState state;
        if (known != nullptr) {
            state = std::move(*known);
            known->configured = false;
            known->out.clear();
            known->pinned = Pool{};
            known->sequences = SequenceList{};
        }
        state.backend = wanted.backend;
        state.instances = std::max(wanted.instances, 1u);
        state.device_instances = std::min(wanted.device_instances, state.instances);
        state.slots = model.policy.direct_max > 0 ? model.policy.direct_max : state.instances;
        state.ready = wanted.ready;
        const bool own = model.policy.direct_max > 0 || model.policy.triton != nullptr;
        state.executor = executor_of(own ? kOwnExecutors : wanted.executor_group);
        const std::vector<std::uint32_t> before = state.devices;
        place_on_devices(index, state, wanted.devices, now);
        moved |= state.devices != before;
        state.configured = true;
        if (state.executor == kNoExecutor) promote(state, now);
        next.push_back(std::move(state));
        if (BackendCounters* page = backend_counters(wanted.backend)) page->in_use = 1;
    }
    for (PlacementState& old : model.placements) {
        if (named(placements, old.backend)) continue;
        old.configured = false;
        moved |= !old.devices.empty();
        memory_.forget(old);
        if (!old.out.empty() || old.pinned.has_work()) next.push_back(std::move(old));
    }
    model.placements = std::move(next);
    model.reference = kNoSlot;  // named one of those before
    memory_.list(index, model.placements);
    places_moved_ |= moved;
}

void Core::configure_model(std::uint32_t index, const ModelPolicy& policy,
                           const std::vector<Placement>& placements, Nanos now) {
    if (index >= kModelsMax) return;
    while (models_.size() <= index) models_.emplace_back();
    if (models_.size() > kCountersModelsMax) {
        unpublished_.resize(models_.size() - kCountersModelsMax);
    }
    ModelState& model = models_[index];
    const ModelPolicy next = normalised(policy);
    const auto arranged = arrangement(model);
    // A change of how the model batches is a new chance to merge.
    if (!same_batching(model.policy, next)) model.merging_off = false;
    if (next.in_use && !model.policy.in_use) model.holding = true;
    if (!next.in_use) model.stats = ModelStats();
    const bool other_levels = !same_levels(model.policy, next);
    model.policy = next;
    if (!next.in_use) forget_latencies(model);
    model.latency.set_attainment(batches_covered(next.attainment));
    for (PlacementState& placement : model.placements) {
        if (placement.own_latency)
            placement.own_latency->set_attainment(model.latency.attainment());
    }
    if (other_levels) rebuild_levels(model, now);
    list_ages(model, requests_);
    model.known = true;
    counters(index).in_use = next.in_use;
    mark_dirty(index);
    if (!next.in_use) forget_all(model, now);
    for (PlacementState& p : model.placements) {
        if (!named(placements, p.backend)) lose_all(p, now);
    }
    release_changed_holds(model, placements, now);
    configure_placements(index, placements, now);
    if (!next.in_use) {
        fail_pool(model, model.shared, kNoBackend, now);
        model.suspects.clear();
    }
    for (std::size_t i = 0; i < model.placements.size(); ++i) {
        PlacementState& p = model.placements[i];
        if (!next.in_use || !p.configured) fail_pool(model, p.pinned, p.backend, now);
    }
    const bool plain = next.triton == nullptr && next.direct_max == 0 && next.sequence_idle_ns == 0;
    model.learns = next.in_use && next.load_aware && plain;
    update_reference(model);
    model.shares = next.in_use && std::any_of(model.placements.begin(), model.placements.end(),
                                              [](const PlacementState& p) {
                                                  return p.configured && p.executor != kNoExecutor;
                                              });
    if (arranged != arrangement(model)) {
        rearrange_ = true;
    } else {
        count_slots(model);
    }
    rebuild_retries(model);
    refresh_all(model, now);
    update_served(model, now);
    if (!rearrange_ && model.shares) offer_all(model, index);
}

void Core::update_served(ModelState& model, Nanos now) {
    const auto update = [&](Pool& pool, bool served) {
        if (served) {
            pool.unserved_since = kNever;
        } else if (pool.unserved_since == kNever) {
            pool.unserved_since = now;
        }
    };
    bool any = false;
    memory_.placements_changed();
    for (PlacementState& p : model.placements) {
        update(p.pinned, usable(p));
        any |= usable(p);
    }
    update(model.shared, any);
    release_unserved_holds(model, now);
}

void Core::set_backend(std::uint32_t backend, bool available, Nanos now) {
    if (backend == kNoBackend) return;
    if (backend >= backends_available_.size()) {
        if (backend >= kCountersBackendsMax) return;
        backends_available_.resize(backend + 1, false);
    }
    if (BackendCounters* page = backend_counters(backend)) page->in_use = 1;
    if (backends_available_[backend] == available) return;
    backends_available_[backend] = available;
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        PlacementState* placement = models_[index].placement(backend);
        if (placement == nullptr) continue;
        if (available) {
            placement->recover();
            placement->memory.note_return(now);
            memory_.placements_changed();
        } else {
            placement->memory.note_away();
        }
        update_served(models_[index], now);
        update_reference(models_[index]);
        mark_dirty(index);
    }
    count_slots();
}

// Accounts are opened anew.
void Core::set_tenants(const std::vector<double>& weights) {
    rearrange_ = true;
    for (Component& component : components_) component.shares = FairShares();
    tenant_weights_ = {1.0};
    for (std::size_t i = 0; i < weights.size() && i < kTenantsMax; ++i) {
        tenant_weights_.resize(std::max(tenant_weights_.size(), i + 1), 1.0);
        if (weights[i] > 0 && std::isfinite(weights[i])) tenant_weights_[i] = weights[i];
    }
}

// Answers all that waits in a pool: the queued requests in the order they came, then the groups
// that were to be sent again.
void Core::fail_pool(ModelState& model, Pool& pool, std::uint32_t pin, Nanos now) {
    const Ending ending{Outcome::kFailed, Reason::kNoBackend, StatusCode::kUnavailable};
    if (pin == kNoBackend) release_formed(model);
    for (std::uint32_t slot = model.by_age.first; slot != kNoSlot;) {
        const std::uint32_t next = requests_[slot].in_model.next;
        const RequestRecord& request = requests_[slot];
        const bool waits_here = request.in_levels
                                    ? pin == kNoBackend
                                    : !request.held && model.groups[request.group].key.pin == pin;
        if (waits_here) finish(slot, ending, now);
        slot = next;
    }
    while (!pool.retries.empty()) {
        const std::uint32_t batch_slot = pool.retries.begin()->second;
        const std::vector<BatchMember> waiting = batches_[batch_slot].members;
        // The batch goes with its last member.
        fail_members(waiting, ending, now);
    }
}

}  // namespace infersched::engine
