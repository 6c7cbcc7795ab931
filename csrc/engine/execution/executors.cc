// Models that share executors: which of them a free executor serves.
#include "engine/execution/executors.h"

#include <algorithm>
#include <map>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Offers that are held back and late, looked at in one turn, and those passed over to find them.
constexpr std::uint32_t kHeldLooksMax = 8;
constexpr std::uint32_t kHeldPassedMax = 64;

// Before all keys of this level.
QueueKey first_of(std::uint32_t level) {
    return {level, kNoSlot, std::numeric_limits<Nanos>::min(), 0};
}

bool any_free(const std::vector<Executor>& executors, const Domain& domain) {
    return std::any_of(domain.executors.begin(), domain.executors.end(),
                       [&](std::uint32_t e) { return executors[e].out.empty(); });
}

// Executors that the most urgent group of a pool leaves to others.
std::uint32_t reserve_of(const ModelState& model, const Pool& pool) {
    const Group& group = model.groups[pool.ready.begin()->group];
    return group.reserve.binds(group.head().level) ? group.reserve.executors : 0;
}

// The most urgent offer of a domain, from this key on. What leaves `barred` executors or more to
// others is passed over, however many such offers there are: as many of its batches run as may.
const Offer* first_offer(const Domain& domain, std::uint32_t barred, const QueueKey& from) {
    const Offer* first = nullptr;
    for (auto at = domain.offers.begin(); at != domain.offers.end() && at->reserve < barred;) {
        const std::uint32_t reserve = at->reserve;
        if (at->key < from) at = domain.offers.lower_bound({from, 0, 0, reserve});
        const bool found = at != domain.offers.end() && at->reserve == reserve;
        if (found && (first == nullptr || at->more_urgent_than(*first))) first = &*at;
        if (domain.offers.rbegin()->reserve == reserve) break;
        at = domain.offers.lower_bound({first_of(0), 0, 0, reserve + 1});
    }
    return first;
}

}  // namespace

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
            p.pinned.offered = false;
            p.pinned.domain = shared ? domain_of({p.executor}) : kNoSlot;
            if (shared) all.push_back(p.executor);
        }
        model.shared.offered = false;
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

void Core::withdraw(std::uint32_t index, Pool& pool, std::uint32_t pin) {
    if (!pool.offered) return;
    domains_[pool.domain].offers.erase({pool.offer_key, index, pin, pool.offer_reserve});
    pool.offered = false;
}

// Offers the most urgent work of a pool: what is sent again, then the most urgent group.
void Core::offer(std::uint32_t index, Pool& pool, std::uint32_t pin) {
    if (pool.domain == kNoSlot) return;
    QueueKey key;
    std::uint32_t reserve = 0;
    if (pool.offers_retry()) {
        key.deadline = std::numeric_limits<Nanos>::min();
        key.sequence = pool.retries.begin()->first;
    } else if (!pool.ready.empty()) {
        key = pool.ready.begin()->key;
        reserve = reserve_of(models_[index], pool);
    } else {
        return withdraw(index, pool, pin);
    }
    const bool same = !(key < pool.offer_key) && !(pool.offer_key < key);
    if (pool.offered && same && reserve == pool.offer_reserve) return;
    withdraw(index, pool, pin);
    pool.offered = true;
    pool.offer_key = key;
    pool.offer_reserve = reserve;
    domains_[pool.domain].offers.insert({key, index, pin, reserve});
    touch_component(domains_[pool.domain].component);
}

void Core::offer_all(ModelState& model, std::uint32_t index) {
    if (model.holding || !model.policy.in_use) {
        withdraw(index, model.shared, kNoBackend);
        for (PlacementState& p : model.placements) withdraw(index, p.pinned, p.backend);
        return;
    }
    offer(index, model.shared, kNoBackend);
    for (PlacementState& p : model.placements) offer(index, p.pinned, p.backend);
}

const Offer* Core::best_offer(const Component& component, std::uint32_t barred) const {
    const Offer* best = nullptr;
    for (const std::uint32_t index : component.domains) {
        const Domain& domain = domains_[index];
        if (domain.offers.empty()) continue;
        const Offer* first = first_offer(domain, barred, first_of(0));
        if (first == nullptr || (best != nullptr && !first->more_urgent_than(*best))) continue;
        if (any_free(executors_, domain)) best = first;
    }
    return best;
}

// Sends the batch that is offered. False: no executor takes it now.
bool Core::serve_offer(const Offer& offered, Nanos now) {
    ModelState& model = models_[offered.model];
    Pool& pool = model.pool(offered.pin);
    if (pool.offers_retry()) {
        const Choice choice = choose_for_retry(model, pool, Executors::kAll, now);
        if (choice.placement == nullptr) return false;
        send_retry(model, pool, choice, now);
    } else {
        const Choice choice = choose_for_group(model, pool, Executors::kAll, now);
        if (choice.placement == nullptr) return false;
        send_next(model, pool, choice, now);
    }
    mark_dirty(offered.model);
    plan_stale(model, now);
    return true;
}

// A batch of a lower level that would be late behind the first offer, which itself would not be
// late behind that batch. nullptr: there is none, levels decide.
const Offer* Core::urgent_below(const Domain& domain, const Offer& first, std::uint32_t barred,
                                Nanos now) const {
    const Nanos free_beside = components_[domain.component].backlog.free_beside(now);
    const auto batch_ns = [&](const Offer& offer) -> Nanos {
        const ModelState& model = models_[offer.model];
        const Pool& pool = const_cast<ModelState&>(model).pool(offer.pin);
        if (pool.offers_retry() || pool.ready.empty()) return kNever;
        const Group& group = model.groups[pool.ready.begin()->group];
        if (!planned(model, group)) return kNever;
        return group.head().deadline - pool.ready.begin()->key.deadline;
    };
    const auto waits_for = [&](const Offer& other) {
        return std::min(free_beside, add_saturating(now, batch_ns(other)));
    };
    if (batch_ns(first) == kNever) return nullptr;
    const Nanos behind_first = waits_for(first);
    const auto below = [&](const Offer& offer) {
        return first_offer(domain, barred, first_of(offer.key.level + 1));
    };
    for (const Offer* at = below(first); at != nullptr; at = below(*at)) {
        const bool urgent = at->key.deadline < behind_first && at->key.deadline >= now;
        const Nanos ns = urgent ? batch_ns(*at) : kNever;
        const bool holds = ns != kNever && waits_for(*at) <= first.key.deadline &&
                           ns <= hold_limit(models_[at->model], at->key.level, now);
        if (holds) return at;
    }
    return nullptr;
}

// False: what was offered is another batch now, or none.
bool Core::brought_up_to_date(const Offer& offered, Nanos now) {
    ModelState& model = models_[offered.model];
    Pool& pool = model.pool(offered.pin);
    settle(model, pool, now);
    plan_stale(model, now);
    offer(offered.model, pool, offered.pin);
    return domains_[pool.domain].offers.count(offered) > 0;
}

// Gives up what became late while it was held back beside a free executor: before the time that it
// is offered under, a group was planned to be in time.
void Core::give_up_held(const Component& component, Nanos now) {
    std::uint32_t looks = kHeldLooksMax;
    std::uint32_t passed = kHeldPassedMax;
    for (const std::uint32_t index : component.domains) {
        if (!any_free(executors_, domains_[index])) continue;
        const std::set<Offer>& offers = domains_[index].offers;
        auto at = offers.lower_bound({first_of(0), 0, 0, 1});
        while (at != offers.end() && looks > 0 && passed > 0) {
            const Offer offered = *at;
            if (offered.key.deadline < now) {
                --looks;
                brought_up_to_date(offered, now);
                at = offers.upper_bound(offered);
            } else {
                --passed;
                at = offers.lower_bound({first_of(offered.key.level + 1), 0, 0, offered.reserve});
            }
        }
    }
}

// Gives free executors to the most urgent offers. An offer was made some time ago: it is brought up
// to date before it is taken, and can only have become less urgent.
void Core::serve(std::uint32_t index, Nanos now) {
    Component& component = components_[index];
    if (component.backlog.recount_at() <= now) count_pauses(component, now);
    std::vector<Offer> blocked;
    for (;;) {
        const std::uint32_t barred = component.backlog.barred_from(now);
        const Offer* best = best_offer(component, barred);
        if (best == nullptr) break;
        Offer offered = *best;
        const Domain& domain = domains_[models_[offered.model].pool(offered.pin).domain];
        if (!brought_up_to_date(offered, now)) continue;
        const Offer* first = first_offer(domain, barred, first_of(0));
        if (first == nullptr || first->more_urgent_than(offered)) continue;
        const Offer* urgent =
            component.levels ? urgent_below(domain, offered, barred, now) : nullptr;
        if (urgent != nullptr) {
            offered = *urgent;
            if (!brought_up_to_date(offered, now)) continue;
        }
        Pool& pool = models_[offered.model].pool(offered.pin);
        if (!serve_offer(offered, now)) {
            blocked.push_back(offered);
            if (!pool.offers_retry()) {
                withdraw(offered.model, pool, offered.pin);
                continue;
            }
            // What is held free for it is not all there is: the group takes its turn elsewhere.
            pool.retry_waits = true;
        }
        offer(offered.model, pool, offered.pin);
    }
    give_up_held(component, now);
    for (const Offer& offered : blocked) {
        models_[offered.model].pool(offered.pin).retry_waits = false;
        offer_all(models_[offered.model], offered.model);
    }
    component.dirty = false;
}

}  // namespace infersched::engine
