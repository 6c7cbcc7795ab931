// Batches formed by learned latency: what of a group goes next, when, and what is given up.
//
// A batch goes when it has as many rows as the present load asks for (batching/targets.cc), or when
// it must for the deadline of its lead. Requests without which a batch of that size can be made in
// time, and with which it cannot, are given up: serving what is nearly late in small batches makes
// everything behind it late.
#include <algorithm>

#include "engine/batching/load_rules.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

// Something is run this often, however late it is predicted to be: only what runs is learned from.
constexpr Nanos kProbeNs = 100 * kMillisecond;
// Batches that are tried although they are predicted to be late are so many times their time apart.
constexpr Nanos kTriesApart = 8;
// The rows of the batch by which the fastest backend is found.
constexpr std::uint32_t kRowsCompared = 8;

}  // namespace

bool Core::planned(const ModelState& model, const Group& group) const {
    return model.reference != kNoSlot && !group.order.empty() && group.head().deadline != kNever;
}

// The usable placement that is fastest: what it cannot do in time, none can. With `sure`, up to its
// margin; without, as batches choose theirs.
std::uint32_t Core::fastest_placement(const ModelState& model, std::uint32_t rows,
                                      bool sure) const {
    Nanos least = kNever;
    std::uint32_t fastest = kNoSlot;
    for (std::uint32_t i = 0; i < model.placements.size(); ++i) {
        const PlacementState& p = model.placements[i];
        const LatencyModel& latency = latency_of(model, p);
        if (!p.configured || !latency.known()) continue;
        const Nanos ns = sure ? latency.bound(rows) : latency.expected(rows);
        // One that cannot be used now is better than nothing.
        const Nanos ranked = usable(p) ? ns : kNever - 1;
        if (ranked >= least) continue;
        least = ranked;
        fastest = i;
    }
    return fastest;
}

void Core::update_reference(ModelState& model) {
    model.reference = kNoSlot;
    model.latencies_differ = false;
    if (!model.learns) return;
    model.rows_trusted = 1;
    for (const PlacementState& p : model.placements) {
        if (!p.configured) continue;
        model.latencies_differ |= p.own_latency != nullptr;
        if (latency_of(model, p).known()) trust_rows(model, p);
    }
    const std::uint32_t rows = std::min(rows_limit(model.policy), kRowsCompared);
    model.reference = fastest_placement(model, rows, true);
}

// What one backend has run, the others may risk: with many of them, each sees few of the large
// ones.
void Core::trust_rows(ModelState& model, const PlacementState& placement) {
    const std::uint32_t limit = rows_limit(model.policy);
    // Batches grow by whole requests.
    const auto step = static_cast<std::uint32_t>(model.request_rows + 0.5);
    const std::uint32_t rows = latency_of(model, placement).rows_trusted(limit, step);
    model.rows_trusted = std::max(model.rows_trusted, rows);
}

// Of the batch that the request of this slot leads.
std::uint32_t Core::lead_rows(const ModelState& model, const Group& group,
                              std::uint32_t slot) const {
    const std::uint32_t rows = std::max(requests_[slot].rows_left(), 1u);
    if (!splits(model, group)) return rows;
    return std::min(rows, rows_limit(model.policy, rows_allowed(model, group).single));
}

std::uint32_t Core::rows_cap(const ModelState& model, const Group& group, std::uint32_t lead,
                             Nanos now) const {
    return merges(model, group, now) ? std::max(lead, rows_risked(model, &group)) : lead;
}

void Core::mark_stale(ModelState& model, std::uint32_t index) {
    Group& group = model.groups[index];
    if (!group.stale) model.stale.push_back(index);
    group.stale = true;
    // Work that is in no index would be taken for none.
    if (group.index == Group::Index::kNone) {
        index_waiting(model, index, std::numeric_limits<Nanos>::min());
    }
}

// In the order of urgency, whatever order they were found in.
void Core::plan_stale(ModelState& model, Nanos now) {
    std::vector<std::uint32_t>& planning = model.planning;
    while (!model.stale.empty()) {
        planning.swap(model.stale);
        const auto done = [&](std::uint32_t index) {
            Group& group = model.groups[index];
            group.stale = group.stale && !group.order.empty();
            return !group.stale;
        };
        planning.erase(std::remove_if(planning.begin(), planning.end(), done), planning.end());
        std::sort(planning.begin(), planning.end(), [&](std::uint32_t one, std::uint32_t other) {
            return model.groups[one].head() < model.groups[other].head();
        });
        for (const std::uint32_t index : planning) {
            if (!done(index)) plan(model, index, now);
        }
        planning.clear();
    }
}

void Core::index_ready(ModelState& model, std::uint32_t index, const QueueKey& key) {
    Group& group = model.groups[index];
    const QueueKey& known = group.ready_key;
    if (group.index == Group::Index::kReady && !(known < key) && !(key < known)) {
        return;
    }
    unindex(model, index);
    group.index = Group::Index::kReady;
    group.ready_key = key;
    model.pool(group.key.pin).ready.insert({key, index});
}

void Core::index_waiting(ModelState& model, std::uint32_t index, Nanos ready_at) {
    Group& group = model.groups[index];
    if (group.index == Group::Index::kWaiting && group.ready_at == ready_at) return;
    unindex(model, index);
    group.index = Group::Index::kWaiting;
    group.ready_at = ready_at;
    model.pool(group.key.pin).waiting.insert({ready_at, index});
}

// Under which a group that is not planned is ready. Where models compete, and beside work with a
// deadline, one without a deadline is last of its level.
QueueKey Core::rank(const ModelState& model, const Group& group) const {
    QueueKey key = group.head();
    if (!model.learns && !model.shares) return key;
    if (key.deadline != kNever) {
        key.level = 0;
        key.deadline -= model.batch_ns;
        return key;
    }
    return key;
}

// How many rows up to the last one of a level, at most `wanted`, could still make one batch; where
// it has few, those of the levels above it belong to that batch, too.
std::uint32_t Core::window_rows(const ModelState& model, const Group& group, QueueKey last,
                                std::uint32_t wanted, Nanos now) const {
    const LatencyModel& latency = planning_latency(model, group);
    std::uint32_t window = 0;
    std::uint64_t rows = 0;
    for (auto next = group.order.upper_bound(last); next != group.order.begin();) {
        --next;
        rows += requests_[next->slot].rows_left();
        if (rows > wanted) break;
        const auto taken = static_cast<std::uint32_t>(rows);
        if (add_saturating(now, bound_ns(model.policy, latency, taken)) > next->deadline) break;
        window = taken;
    }
    return window;
}

// Answers at once what no batch worth its time can take any more: of every level what is first, as
// what is nearly late would keep the batches of the levels above it small, too. A level is not
// given up for batches of the size that those below it ask for.
void Core::give_up_late(ModelState& model, std::uint32_t index, Nanos now) {
    Group& group = model.groups[index];
    const LatencyModel& latency = planning_latency(model, group);
    std::uint32_t level = 0;
    std::uint32_t wanted = 0;
    auto next = group.order.begin();
    while (next != group.order.end() && next->deadline != kNever) {
        const QueueKey first = *next;
        const std::uint32_t lead = lead_rows(model, group, first.slot);
        const std::uint32_t cap = rows_cap(model, group, lead, now);
        if (first.level != level) {
            level = first.level;
            wanted = std::clamp(group.target_of(level), 1u, cap);
        }
        const auto worth = [&] {
            const std::uint64_t rows = std::min<std::uint64_t>(wanted, group.rows);
            return std::max(lead, static_cast<std::uint32_t>(rows));
        };
        // The margin is for what can be chosen: a request that nothing waits behind is only given
        // up when it is expected to be late.
        const auto late = [&] {
            const std::uint32_t padded = padded_rows(model.policy, worth());
            const bool alone = group.rows <= worth() && group.order.size() == 1;
            const Nanos ns = alone ? latency.expected(padded) : latency.bound(padded);
            return add_saturating(now, ns) > first.deadline;
        };
        QueueKey last = first;
        last.deadline = kNever;
        last.sequence = std::numeric_limits<std::uint64_t>::max();
        if (late()) {
            wanted = std::min(wanted, std::max(window_rows(model, group, last, worth(), now), 1u));
        }
        if (!late()) {
            next = group.order.upper_bound(last);
            continue;
        }
        // What was let in late is run once a while. What became late in waiting for others is not:
        // it tells nothing of the prediction.
        const Nanos least = latency.expected(padded_rows(model.policy, lead));
        const bool was_late = add_saturating(requests_[first.slot].arrival, least) > first.deadline;
        const bool idle = model.inflight_batches == 0 && now - model.last_complete > kProbeNs;
        if (requests_[first.slot].kept || (was_late && idle)) return;
        const Reason reason =
            requests_[first.slot].dispatched ? Reason::kExpiredInFlight : Reason::kExpiredInQueue;
        finish(first.slot, {Outcome::kExpired, reason, StatusCode::kDeadlineExceeded}, now);
        next = group.order.upper_bound(first);
    }
}

// Gives up what is late, and finds when the rest may go.
void Core::plan(ModelState& model, std::uint32_t index, Nanos now) {
    Group& group = model.groups[index];
    if (planned(model, group)) give_up_late(model, index, now);
    group.stale = false;
    group.planned_at = now;
    if (group.order.empty()) return;
    group.rows_planned = 0;
    if (!planned(model, group)) return refresh(model, index, now);
    const LatencyModel& latency = planning_latency(model, group);
    const QueueKey& head = group.head();
    const std::uint32_t lead = lead_rows(model, group, head.slot);
    const std::uint32_t cap = rows_cap(model, group, lead, now);
    const auto queued = static_cast<std::uint32_t>(std::min<std::uint64_t>(group.rows, cap));
    const std::uint32_t rows =
        std::max(lead, rows_within(model.policy, latency, head.deadline - now, queued));
    group.rows_planned = group.rows;
    group.planned_ns = bound_ns(model.policy, latency, rows);
    // What only fills it does not make the batch due sooner than others.
    const auto due = static_cast<std::uint32_t>(std::min<std::uint64_t>(group.rows_due(), rows));
    QueueKey key = head;
    key.deadline = head.deadline - bound_ns(model.policy, latency, std::max(due, lead));
    const std::uint32_t awaited = rows_awaited(model, group);
    if (rows < std::min(awaited, cap)) {
        const Nanos slack = (head.deadline - requests_[head.slot].arrival) / kSlackShare;
        const Nanos must_go = head.deadline - bound_ns(model.policy, latency, rows + 1) - slack;
        const Nanos last = requests_[group.by_age.last].arrival;
        // What is waited for must not take longer than running without it.
        const Nanos patience = std::min(static_cast<Nanos>(awaited - rows) * group.gather_ns,
                                        latency.expected(padded_rows(model.policy, rows)));
        const Nanos go_at = std::min(must_go, add_saturating(last, patience));
        if (go_at > now) {
            index_waiting(model, index, go_at);
            group.ready_key = key;
            return;
        }
    }
    index_ready(model, index, key);
}

// Brings the most urgent ready group of a pool up to date. False: nothing is ready.
bool Core::settle(ModelState& model, Pool& pool, Nanos now) {
    while (!pool.ready.empty()) {
        const std::uint32_t index = pool.ready.begin()->group;
        const Group& group = model.groups[index];
        if (!planned(model, group) || (group.planned_at == now && !group.stale)) return true;
        plan(model, index, now);
    }
    return false;
}

// Rows that are worth waiting for. A batch with rows of a level that yields is not let last longer
// than those above it leave time for: to wait for more of them leaves executors idle.
std::uint32_t Core::rows_awaited(const ModelState& model, const Group& group) const {
    const std::uint32_t level = group.order.back().level;
    if (!yields(model, level)) return group.awaited;
    const Hold& hold = components_[model.component].holds[metered_level(level)];
    const LatencyModel& latency = planning_latency(model, group);
    const Nanos alone_ns = hold.alone_bound(latency.margin());
    return std::max(rows_within(model.policy, latency, alone_ns, group.awaited), 1u);
}

// Of at most `limit` rows behind a lead without a deadline: as many as higher levels leave time
// for.
std::uint32_t Core::held_rows(const ModelState& model, const Group& group, std::uint32_t limit,
                              Nanos now) const {
    if (!yields(model, group.head().level)) return limit;
    const LatencyModel& latency = planning_latency(model, group);
    const Nanos hold = hold_limit(model, group.head().level, latency.margin(), now);
    const std::uint32_t rows = rows_within(model.policy, latency, hold, limit);
    return std::max(rows, std::min(limit, lead_rows(model, group, group.head().slot)));
}

// Rows of the next batch, so that what is beyond the target goes to all executors that would be
// idle otherwise: clients that wait for their answers may send nothing more until then.
std::uint32_t Core::spread_rows(const ModelState& model, const Group& group, Nanos now) const {
    constexpr std::uint32_t kAll = std::numeric_limits<std::uint32_t>::max();
    if (group.rows <= group.target || !model.policy.mandatory_rows.empty()) return kAll;
    std::uint64_t idle = 0;
    for (const PlacementState& p : model.placements) {
        if (!usable(p) || p.resting(now) || !slot_free(p)) continue;
        if (group.key.pin != kNoBackend && group.key.pin != p.backend) continue;
        idle += p.executor != kNoExecutor ? 1 : p.slots - p.out.size();
    }
    const Pool& pool = const_cast<ModelState&>(model).pool(group.key.pin);
    // Of this model, and of others that share the executors.
    std::uint64_t ready = std::max<std::uint64_t>(pool.ready.size(), 1);
    if (pool.domain != kNoSlot) {
        ready += std::max<std::uint64_t>(domains_[pool.domain].offers.size(), 1) - 1;
    }
    if (group.reserve.binds(group.head().level)) {
        const Backlog& backlog = components_[model.component].backlog;
        idle = std::min<std::uint64_t>(idle, backlog.places(group.reserve.executors, now));
    }
    if (idle <= ready) return kAll;
    const std::uint64_t executors = idle - ready + 1;
    const std::uint64_t each = (group.rows + executors - 1) / executors;
    return std::max(group.target, static_cast<std::uint32_t>(std::min<std::uint64_t>(each, kAll)));
}

// Whether more than `rows` go in one batch although that is predicted to be late: of a model whose
// batches were all of one size so far, it is a guess what others take. Where it is too long a one
// for the objective, no other size would ever be run. If so, the next such batch comes later.
bool Core::take_try(ModelState& model, const LatencyModel& latency, std::uint32_t rows,
                    Nanos deadline, Nanos now) const {
    if (now < model.more_tried_until || latency.slope_known()) return false;
    const Nanos least = bound_ns(model.policy, latency, rows);
    if (add_saturating(now, least) > deadline) return false;
    model.more_tried_until = add_saturating(now, std::max(kProbeNs, kTriesApart * least));
    return true;
}

// The lead, and behind it what does not make any member late of a batch that starts then.
void Core::form_planned(ModelState& model, std::uint32_t index, std::uint32_t batch_slot,
                        const PlacementState& placement, Nanos starts_at, Nanos now) {
    Group& group = model.groups[index];
    const LatencyModel& latency = latency_of(model, placement);
    const RowsAllowed allowed = rows_allowed(model, group, placement);
    std::uint32_t lead = lead_rows(model, group, group.head().slot);
    if (splits(model, group)) lead = std::min(lead, rows_limit(model.policy, allowed.single));
    std::uint32_t cap = std::min(rows_cap(model, group, lead, now),
                                 std::max(lead, rows_limit(model.policy, allowed.merged)));
    const bool merging = merges(model, group, now);
    if (cap < group.rows && merging && cap < model.rows_trusted) {
        ++counters(requests_[group.head().slot].model).memory_limited_batches;
        batches_[batch_slot].memory_limited = true;
    }
    cap = std::min(cap, std::max(lead, spread_rows(model, group, now)));
    Nanos earliest = kNever;
    std::uint32_t rows = 0;
    std::uint32_t passed_over = 0;
    FetchAhead ahead;
    std::uint32_t hold_level = 0;
    Nanos hold = kNever;
    for (auto next = group.order.begin(); next != group.order.end(); ++next) {
        const QueueKey key = *next;
        std::uint32_t part = requests_[key.slot].rows_left();
        if (key.level != hold_level) {
            // What goes with this batch needs no room beside it.
            take_members(model, index, batch_slot, now);
            next = group.order.lower_bound(key);
            ahead = fetch_ahead(group);
            hold_level = key.level;
            hold = hold_limit(model, key.level, latency.margin(), now);
        }
        ahead.advance();
        if (rows == 0) {
            part = std::min(part, cap);
        } else {
            const bool holds =
                hold == kNever || bound_ns(model.policy, latency, rows + part) <= hold;
            const bool fits = part <= cap - rows && holds;
            const Nanos deadline = std::min(earliest, key.deadline);
            const Nanos ran = bound_ns(model.policy, latency, rows + part);
            const Nanos end = add_saturating(starts_at, ran);
            if (!fits || (end > deadline && !take_try(model, latency, rows, deadline, now))) {
                if (++passed_over > kPassedOverMax) break;
                continue;
            }
        }
        earliest = std::min(earliest, key.deadline);
        join_batch(batch_slot, key.slot, part);
        rows += part;
        if (!merging || rows >= cap) break;
    }
    take_members(model, index, batch_slot, now);
    refresh(model, index, now);
}

}  // namespace infersched::engine
