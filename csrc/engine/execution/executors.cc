// Models that share executors: who competes with whom.
#include "engine/execution/executors.h"

#include <algorithm>
#include <map>

#include "engine/core.h"

namespace infersched::engine {

std::uint32_t Core::executor_of(std::uint32_t group) {
    if (group == kOwnExecutors) return kNoExecutor;
    const auto [known, added] =
        executor_by_group_.emplace(group, static_cast<std::uint32_t>(executors_.size()));
    if (added) {
        executors_.emplace_back();
        executors_.back().group = group;
    }
    return known->second;
}

// The domain of these executors, made when there is none. Only while things are arranged.
std::uint32_t Core::domain_of(std::vector<std::uint32_t> wanted) {
    std::sort(wanted.begin(), wanted.end());
    wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
    if (wanted.empty()) return kNoSlot;
    std::uint32_t component = kNoSlot;
    for (const std::uint32_t executor : wanted) {
        if (executors_[executor].component != kNoSlot) component = executors_[executor].component;
    }
    if (component != kNoSlot) {
        for (const std::uint32_t index : components_[component].domains) {
            if (domains_[index].executors == wanted) return index;
        }
    } else {
        component = static_cast<std::uint32_t>(components_.size());
        components_.emplace_back();
    }
    // Two components that have come to share an executor are one.
    for (const std::uint32_t executor : wanted) {
        const std::uint32_t other = executors_[executor].component;
        if (other == component) continue;
        if (other == kNoSlot) {
            executors_[executor].component = component;
            continue;
        }
        for (Executor& moved : executors_) {
            if (moved.component == other) moved.component = component;
        }
        for (const std::uint32_t moved : components_[other].domains) {
            domains_[moved].component = component;
            components_[component].domains.push_back(moved);
        }
        components_[other] = Component();
    }
    const auto index = static_cast<std::uint32_t>(domains_.size());
    domains_.emplace_back();
    domains_.back().executors = std::move(wanted);
    domains_.back().component = component;
    components_[component].domains.push_back(index);
    return index;
}

// Makes domains and components anew. Offers follow from the pools. A component of the same models
// as before goes on with what it has learned and its control ticks.
void Core::arrange(Nanos now) {
    if (places_moved_) places_.arrange(models_);
    places_moved_ = false;
    if (!rearrange_) return;
    rearrange_ = false;
    for (std::uint32_t c = 0; c < components_.size(); ++c) ticks_.erase(c);
    std::deque<Component> former;
    former.swap(components_);
    std::vector<std::uint32_t> formerly;
    for (const ModelState& model : models_) formerly.push_back(model.component);
    domains_.clear();
    dirty_components_.clear();
    for (Executor& executor : executors_) executor.component = kNoSlot;
    for (ModelState& model : models_) {
        std::vector<std::uint32_t> all;
        const bool served = model.policy.in_use;
        for (PlacementState& p : model.placements) {
            const bool shared = served && p.configured && p.executor != kNoExecutor;
            p.pinned.leave_domain();
            p.pinned.domain = shared ? domain_of({p.executor}) : kNoSlot;
            if (shared) all.push_back(p.executor);
        }
        model.shared.leave_domain();
        model.shared.domain = domain_of(std::move(all));
    }
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        ModelState& model = models_[index];
        arrange_component(model, index);
        if (!model.shares) continue;
        offer_all(model, index);
    }
    carry_over(former, formerly);
    rebuild_backlogs(now);
    count_slots();
    for (std::uint32_t c = 0; c < components_.size(); ++c) {
        Component& component = components_[c];
        if (!component.domains.empty()) touch_component(c);
        if (component.metered.empty()) {
            component.tick_at = kNever;
            continue;
        }
        if (component.tick_at == kNever) component.tick_at = now + RateMeter::kTickNs;
        ticks_.set({component.tick_at, c, c});
    }
}

// Hands what components have learned to those that have the same models now.
void Core::carry_over(std::deque<Component>& former, const std::vector<std::uint32_t>& formerly) {
    constexpr std::uint32_t kMixed = kNoSlot - 1;
    std::vector<std::uint32_t> heirs(former.size(), kNoSlot);         // of former components
    std::vector<std::uint32_t> sources(components_.size(), kNoSlot);  // of those there are now
    const auto link = [](std::uint32_t& known, std::uint32_t other) {
        known = known == kNoSlot || known == other ? other : kMixed;
    };
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        const std::uint32_t from = formerly[index];
        const std::uint32_t to = models_[index].component;
        link(sources[to], from < former.size() ? from : kMixed);
        if (from < former.size()) link(heirs[from], to);
    }
    for (std::uint32_t c = 0; c < components_.size(); ++c) {
        const std::uint32_t from = sources[c];
        if (from >= former.size() || heirs[from] != c) continue;
        Component& component = components_[c];
        component.tick_at = former[from].tick_at;
        component.cursor = former[from].cursor;
        component.missing_level = former[from].missing_level;
        component.behind = former[from].behind;
        component.batch_ns = former[from].batch_ns;
        component.holds = former[from].holds;
        component.look_credit = former[from].look_credit;
        component.batches_since_aged = former[from].batches_since_aged;
        component.shares = std::move(former[from].shares);
        component.shares.leave_all();
    }
}

// Batches that can run at once: on executors and instances that something can be sent to.
void Core::count_slots() {
    if (rearrange_) return;
    std::vector<bool> counted(executors_.size());
    for (Component& component : components_) component.slots = 0;
    for (const ModelState& model : models_) {
        if (!model.policy.in_use) continue;
        for (const PlacementState& p : model.placements) {
            if (!usable(p)) continue;
            if (p.executor == kNoExecutor) {
                components_[model.component].slots += p.slots;
            } else if (!counted[p.executor]) {
                counted[p.executor] = true;
                ++components_[executors_[p.executor].component].slots;
            }
        }
    }
    for (Component& component : components_) {
        component.backlog.set_slots(component.slots);
        component.backlog.recount();
    }
}

// The same after a change of one model; those with executors of their own are a component each.
void Core::count_slots(const ModelState& model) {
    if (rearrange_) return;
    if (model.component == kNoSlot) return;
    if (model.shares) return count_slots();
    Component& component = components_[model.component];
    component.slots = 0;
    for (const PlacementState& p : model.placements) {
        if (model.policy.in_use && usable(p)) component.slots += p.slots;
    }
    component.backlog.set_slots(component.slots);
    component.backlog.recount();
}

void Core::recount_pauses(const ModelState& model) {
    if (Backlog* backlog = backlog_of(model)) backlog->recount();
}

// Executors that rest after a failure, of all models that have traffic.
void Core::count_pauses(Component& component, Nanos now) {
    std::vector<Nanos> until;
    if (rests_until_ <= now) {
        component.backlog.set_paused(until);
        return;
    }
    std::map<std::uint32_t, Nanos> shared;  // by executor, when the first model may use it
    for (const std::uint32_t index : component.metered) {
        for (const PlacementState& p : models_[index].placements) {
            if (!usable(p)) continue;
            const Nanos at = p.rest_until;
            if (p.executor != kNoExecutor) {
                const auto known = shared.try_emplace(p.executor, at).first;
                known->second = std::min(known->second, at);
            } else if (at > now && p.out.size() < p.slots) {
                until.insert(until.end(), p.slots - p.out.size(), at);
            }
        }
    }
    for (const auto& [executor, at] : shared) {
        if (at > now && executors_[executor].out.empty()) until.push_back(at);
    }
    std::sort(until.begin(), until.end());
    component.backlog.set_paused(until);
}

void Core::arrange_component(ModelState& model, std::uint32_t index) {
    if (model.shares) {
        model.component = domains_[model.shared.domain].component;
    } else {
        model.component = static_cast<std::uint32_t>(components_.size());
        components_.emplace_back();
    }
    model.refused = RefusedLook();
    Component& component = components_[model.component];
    component.levels |= model.policy.priority_levels > 1;
    if (model.metered) component.metered.push_back(index);
    // Since when at the latest is found out when it has its turn.
    if (model.listed_aged) component.aged.push({0, index});
}

void Core::touch_component(std::uint32_t component) {
    if (component == kNoSlot || rearrange_ || components_[component].dirty) return;
    components_[component].dirty = true;
    dirty_components_.push_back(component);
}

}  // namespace infersched::engine
