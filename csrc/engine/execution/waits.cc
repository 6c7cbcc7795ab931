// Groups that wait for more rows while an executor is about to be given to another batch.
//
// A batch is not taken back. So a group that goes before that one, by level and then by when it
// must start, waits no longer where it would be late behind it: where it must start before an
// executor is free again. Where another one is free in time, it goes on waiting. So it does before
// a lower level while its own has what it asks for: that one would be the poorer for nothing.
#include <algorithm>
#include <array>

#include "engine/batching/load_rules.h"
#include "engine/core.h"
#include "engine/execution/executors.h"

namespace infersched::engine {
namespace {

// Groups of one pool that are looked at closely beside one batch, and those passed over to find
// them; and pools.
constexpr std::size_t kGroupsLookedMax = 8;
constexpr std::uint32_t kGroupsPassedMax = 64;
// Looks at the groups of one pool, each after those of the one before were brought up to date.
constexpr std::uint32_t kLooksMax = 8;
constexpr std::size_t kPoolsLookedMax = 8;
constexpr std::uint32_t kPoolsPassedMax = 64;

// Whether a group that waits goes before what is upcoming and would be late behind it, as it was
// planned last: as time passes, it has time for fewer rows and need not start as early.
bool cannot_wait(const Group& group, const Upcoming& next) {
    if (group.rows_planned == 0) return false;
    const bool barred =
        group.reserve.binds(group.ready_key.level) && group.reserve.executors >= next.barred_from;
    const QueueKey& key = group.ready_key;
    const bool first = key < next.key && goes_before(key.level, next.key.level, next.behind);
    return first && key.deadline < next.free_at && !barred;
}

// Whether there may be such a group in a pool.
bool any_cannot_wait(const ModelState& model, const Pool& pool, const Upcoming& next) {
    std::uint32_t passed = kGroupsPassedMax;
    for (const auto& [ready_at, index] : pool.waiting) {
        if (ready_at >= next.free_at || passed-- == 0) return false;
        const Group& group = model.groups[index];
        if (group.stale || cannot_wait(group, next)) return true;
    }
    return false;
}

// The most urgent of those that are up to date and cannot wait. kNoSlot: there is none.
std::uint32_t urgent_wait(const ModelState& model, const Pool& pool, const Upcoming& next,
                          Nanos now) {
    std::uint32_t first = kNoSlot;
    std::uint32_t passed = kGroupsPassedMax;
    for (const auto& [ready_at, index] : pool.waiting) {
        if (ready_at >= next.free_at || passed-- == 0) break;
        const Group& group = model.groups[index];
        const bool current = group.planned_at == now && !group.stale;
        if (!current || !cannot_wait(group, next)) continue;
        if (first != kNoSlot && !(group.ready_key < model.groups[first].ready_key)) continue;
        first = index;
    }
    return first;
}

}  // namespace

// What the most urgent batch of a pool is, and when an executor is free behind it.
Upcoming Core::upcoming(const ModelState& model, const Pool& pool, Nanos now) {
    const Pool::Ready& first = *pool.ready.begin();
    const Group& group = model.groups[first.group];
    Nanos ns = model.batch_ns;
    if (planned(model, group)) {
        ns = group.planned_ns;
    } else if (model.reference != kNoSlot) {
        const bool merging = merges(model, group, now);
        const std::uint32_t most = batch_limit(model, group, merging, rows_allowed(model, group));
        const auto limit = static_cast<std::uint32_t>(std::min<std::uint64_t>(group.rows, most));
        const std::uint32_t rows = held_rows(model, group, limit, now);
        ns = bound_ns(model.policy, planning_latency(model, group), std::max(rows, 1u));
    }
    const Backlog* backlog = backlog_of(model);
    if (backlog == nullptr) return {first.key, now};
    Upcoming next{first.key, backlog->free_at(1, ns, now)};
    // Of a model by itself it is not known.
    next.behind = model.shares ? components_[model.component].behind : ~Levels{0};
    return next;
}

// Brings those up to date that may have to go first, in the order of urgency, whatever order they
// were found in. True: what is ready may be another now.
bool Core::plan_waits(ModelState& model, const Pool& pool, const Upcoming& next, Nanos now) {
    std::array<std::uint32_t, kGroupsLookedMax> found;
    auto end = found.begin();
    std::uint32_t passed = kGroupsPassedMax;
    const auto before = [&](std::uint32_t one, std::uint32_t other) {
        return model.groups[one].head() < model.groups[other].head();
    };
    for (const auto& [ready_at, index] : pool.waiting) {
        if (ready_at >= next.free_at || end == found.end() || passed-- == 0) break;
        const Group& group = model.groups[index];
        const bool current = group.planned_at == now && !group.stale;
        if (current || !(group.stale || cannot_wait(group, next))) continue;
        const auto at = std::upper_bound(found.begin(), end, index, before);
        std::move_backward(at, end, end + 1);
        *at = index;
        ++end;
    }
    std::for_each(found.begin(), end, [&](std::uint32_t index) {
        if (!model.groups[index].order.empty()) plan(model, index, now);
    });
    return end != found.begin();
}

// Ends the wait of a group that has to go before the most urgent batch of this pool. True: what is
// ready may be another now.
bool Core::end_wait(ModelState& model, Pool& pool, Nanos now) {
    if (pool.waiting.empty()) return false;
    Upcoming next = upcoming(model, pool, now);
    bool changed = false;
    for (std::uint32_t looks = kLooksMax; looks > 0 && plan_waits(model, pool, next, now);
         --looks) {
        changed = true;
        if (!settle(model, pool, now)) return true;
        next = upcoming(model, pool, now);
    }
    const std::uint32_t first = urgent_wait(model, pool, next, now);
    if (first == kNoSlot) return changed;
    index_ready(model, first, model.groups[first].ready_key);
    return true;
}

// Ends the wait of a group that has to go before this offer, of the models that may use the same
// executors. True: what is offered may be another now.
bool Core::end_wait_before(const Offer& offered, std::uint32_t barred, Nanos now) {
    ModelState& model = models_[offered.model];
    const Pool& pool = model.pool(offered.pin);
    const std::set<Wait>& waits = domains_[pool.domain].waits;
    if (waits.empty() || pool.offers_retry() || pool.ready.empty()) return false;
    Upcoming next = upcoming(model, pool, now);
    next.barred_from = barred;
    std::array<Wait, kPoolsLookedMax> looked;
    std::size_t count = 0;
    std::uint32_t passed = kPoolsPassedMax;
    for (const Wait& wait : waits) {
        if (wait.ready_at >= next.free_at || count == looked.size() || passed-- == 0) break;
        ModelState& other = models_[wait.model];
        if (any_cannot_wait(other, other.pool(wait.pin), next)) looked[count++] = wait;
    }
    const auto end = looked.begin() + static_cast<std::ptrdiff_t>(count);
    bool changed = false;
    Wait first;
    std::uint32_t group = kNoSlot;
    for (auto wait = looked.begin(); wait != end; ++wait) {
        ModelState& other = models_[wait->model];
        Pool& others = other.pool(wait->pin);
        if (plan_waits(other, others, next, now)) {
            changed = true;
            plan_stale(other, now);
            offer_all(other, wait->model);
            // Its next turn may be due sooner now.
            mark_dirty(wait->model);
        }
        const std::uint32_t found = urgent_wait(other, others, next, now);
        if (found == kNoSlot) continue;
        next.key = other.groups[found].ready_key;
        first = *wait;
        group = found;
    }
    if (changed || group == kNoSlot) return changed;
    ModelState& other = models_[first.model];
    index_ready(other, group, next.key);
    mark_dirty(first.model);
    offer(first.model, other.pool(first.pin), first.pin);
    return true;
}

}  // namespace infersched::engine
