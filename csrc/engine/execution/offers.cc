// Models that share executors: which of them a free executor serves.
#include <algorithm>

#include "engine/core.h"
#include "engine/execution/executors.h"

namespace infersched::engine {
namespace {

// Offers that are held back and late, looked at in one turn, and those passed over to find them.
constexpr std::uint32_t kHeldLooksMax = 8;
constexpr std::uint32_t kHeldPassedMax = 64;
// Looks in one turn at what waits for more rows that find that it is to be ready.
constexpr std::uint32_t kWaitsEndedMax = 64;

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

void Core::withdraw(std::uint32_t index, Pool& pool, std::uint32_t pin) {
    if (!pool.offered) return;
    domains_[pool.domain].offers.erase({pool.offer_key, index, pin, pool.offer_reserve});
    pool.offered = false;
}

// Keeps the domain's list of what waits.
void Core::list_wait(std::uint32_t index, Pool& pool, std::uint32_t pin, Nanos ready_at) {
    if (pool.domain == kNoSlot || pool.wait_listed == ready_at) return;
    std::set<Wait>& waits = domains_[pool.domain].waits;
    const Wait known{pool.wait_listed, index, pin};
    pool.wait_listed = ready_at;
    if (known.ready_at == kNever) {
        waits.insert({ready_at, index, pin});
        return;
    }
    auto node = waits.extract(known);
    node.value().ready_at = ready_at;
    if (ready_at != kNever) waits.insert(std::move(node));
}

// Offers the most urgent work of a pool: what is sent again, then the most urgent group.
void Core::offer(std::uint32_t index, Pool& pool, std::uint32_t pin) {
    if (pool.domain == kNoSlot) return;
    list_wait(index, pool, pin, pool.waiting.empty() ? kNever : pool.waiting.begin()->first);
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
        const auto withdraw_all = [&](Pool& pool, std::uint32_t pin) {
            list_wait(index, pool, pin, kNever);
            withdraw(index, pool, pin);
        };
        withdraw_all(model.shared, kNoBackend);
        for (PlacementState& p : model.placements) withdraw_all(p.pinned, p.backend);
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

// Sends the batch that is offered.
void Core::serve_offer(const Offer& offered, const Choice& choice, Nanos now) {
    ModelState& model = models_[offered.model];
    Pool& pool = model.pool(offered.pin);
    if (pool.offers_retry()) {
        send_retry(model, pool, choice, now);
    } else {
        send_next(model, pool, choice, now);
    }
    mark_dirty(offered.model);
    plan_stale(model, now);
}

// A batch of a lower level that would be late behind the first offer, which itself would not be
// late behind that batch. nullptr: there is none, levels decide.
const Offer* Core::urgent_below(const Domain& domain, const Offer& first, std::uint32_t barred,
                                Nanos now) const {
    const Nanos free_beside = components_[domain.component].backlog.free_beside(now);
    const auto group_of = [&](const Offer& offer) -> const Group* {
        const ModelState& model = models_[offer.model];
        const Pool& pool = const_cast<ModelState&>(model).pool(offer.pin);
        if (pool.offers_retry() || pool.ready.empty()) return nullptr;
        const Group& group = model.groups[pool.ready.begin()->group];
        return planned(model, group) ? &group : nullptr;
    };
    const auto batch_ns = [&](const Offer& offer) -> Nanos {
        const Group* group = group_of(offer);
        return group == nullptr ? kNever : group->planned_ns;
    };
    const auto held_ns = [&](const Offer& offer) {
        const ModelState& model = models_[offer.model];
        const double margin = planning_latency(model, *group_of(offer)).margin();
        return hold_limit(model, offer.key.level, margin, now);
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
        const bool holds =
            ns != kNever && waits_for(*at) <= first.key.deadline && ns <= held_ns(*at);
        if (holds) return at;
    }
    return nullptr;
}

// False: what was offered is another batch now, or none.
bool Core::brought_up_to_date(const Offer& offered, Nanos now) {
    ModelState& model = models_[offered.model];
    Pool& pool = model.pool(offered.pin);
    const Nanos waited_until = pool.wait_listed;
    settle(model, pool, now);
    plan_stale(model, now);
    offer(offered.model, pool, offered.pin);
    // What is not ready any more is to be looked at by then.
    if (pool.wait_listed != waited_until) mark_dirty(offered.model);
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
    std::uint32_t waits_left = kWaitsEndedMax;
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
        ModelState& model = models_[offered.model];
        Pool& pool = model.pool(offered.pin);
        const Choice choice = pool.offers_retry()
                                  ? choose_for_retry(model, pool, Executors::kAll, now)
                                  : choose_for_group(model, pool, Executors::kAll, now);
        // What no executor takes now is in nobody's way.
        const bool taken = choice.placement != nullptr;
        if (taken && waits_left > 0 && end_wait_before(offered, barred, now)) {
            --waits_left;
            continue;
        }
        if (taken) {
            serve_offer(offered, choice, now);
        } else {
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
