// Which batch goes where: late binding, one batch at a time while a slot is free for it.
#include <algorithm>

#include "engine/batching/load_rules.h"
#include "engine/core.h"
#include "engine/execution/runs_on.h"

namespace infersched::engine {
namespace {

// Of a batch with an objective, of a model of which no latency is known.
constexpr std::uint32_t kRowsBlind = 32;
constexpr Nanos kAnyTime = std::numeric_limits<Nanos>::min();

}  // namespace

bool Core::usable(const PlacementState& placement) const {
    return placement.configured && placement.ready &&
           placement.backend < backends_available_.size() && backends_available_[placement.backend];
}

// Shared executors run one batch at a time, whoever's it is.
bool Core::slot_free(const PlacementState& placement) const {
    if (placement.executor != kNoExecutor) return executors_[placement.executor].out.empty();
    return placement.out.size() < placement.slots;
}

// When one more batch may be staged; kNever: not before a reply. Nothing is staged at shared
// executors: what is most urgent when they become free is not known before.
Nanos Core::stage_moment(const ModelState& model, const PlacementState& placement) const {
    if (placement.executor != kNoExecutor) return kNever;
    const Nanos oldest_start = batches_[placement.out.front()].started_at;
    return stage_at(placement, model.policy.staged_batches_max, oldest_start);
}

Departure Core::departure_to(const ModelState& model, const PlacementState& placement,
                             const Load& load, Nanos now) const {
    if (slot_free(placement)) return {kAnyTime};
    if (load.early) return early_departure(model, placement, load.group, now);
    if (!load.stage || model.policy.direct_max > 0) return {};
    const std::uint32_t full = rows_full(model.policy);
    if (load.merging && !worth_staging(load.rows_waiting, full, placement.rows_out)) return {};
    return {stage_moment(model, placement)};
}

// The placement of least expected completion among those with a slot for this batch; of a direct
// model, which the backend runs side by side, the one with the fewest out. Equal ones: free ones
// first, then what leaves sooner, fewer rows out, the order of configuration.
Choice Core::choose(ModelState& model, const Pool& pool, const Load& load, Nanos now) {
    const auto eligible = [&](const PlacementState& p) {
        return usable(p) && (&pool == &model.shared || &pool == &p.pinned);
    };
    bool alternative = false;
    if (load.avoid != kNoBackend) {
        for (const PlacementState& p : model.placements) {
            alternative |= eligible(p) && !p.resting(now) && p.backend != load.avoid;
        }
    }
    const bool direct = model.policy.direct_max > 0;
    Choice choice;
    std::uint64_t least = 0;
    Nanos ready_at = kAnyTime;
    for (PlacementState& p : model.placements) {
        if (!eligible(p) || (alternative && p.backend == load.avoid)) continue;
        if (load.executors == Executors::kOwn && p.executor != kNoExecutor) continue;
        // What is sent again is not held back: it may be before the one that waits.
        if (p.held_for != load.hold && (load.hold != 0 || !load.again || load.alone)) continue;
        if (load.others_out > 0) continue;
        if (p.resting(now)) {
            choice.blocked_until = std::min(choice.blocked_until, p.rest_until);
            continue;
        }
        const Departure departure = departure_to(model, p, load, now);
        if (departure.at > now) {
            choice.blocked_until = std::min(choice.blocked_until, departure.at);
            continue;
        }
        const bool early = departure.follows != kNoSlot;
        if (early && !load.again && overtakes(model, pool, p)) continue;
        const PlacementState* best = choice.placement;
        if (load.spread && best != nullptr && p.sequence_count != best->sequence_count) {
            if (p.sequence_count > best->sequence_count) continue;
            best = nullptr;
        }
        std::uint64_t expected = direct ? p.out.size() : expected_completion_ns(p, load.rows);
        if (load.planned) {
            expected = static_cast<std::uint64_t>(latency_of(model, p).expected(load.rows));
        }
        // What should have ended by now may take as long again: it may hang.
        if (early) {
            const Nanos overdue = now - batches_[departure.follows].ends_at;
            expected += static_cast<std::uint64_t>(std::max<Nanos>(overdue, 0));
        }
        const Nanos ready = early ? departure.at : kAnyTime;
        const bool sooner =
            best != nullptr && (ready != ready_at ? ready < ready_at : p.rows_out < best->rows_out);
        if (best == nullptr || expected < least || (expected == least && sooner)) {
            choice.placement = &p;
            choice.follows = departure.follows;
            least = expected;
            ready_at = ready;
        }
    }
    return choice;
}

bool Core::splits(const ModelState& model, const Group& group) const {
    return model.splits(group.key.mergeable);
}

// Rows the next batch of this group is filled up to. Its lead goes whole, unless it is oversize.
std::uint32_t Core::batch_limit(const ModelState& model, const Group& group, bool merging,
                                RowsAllowed allowed) const {
    const std::uint32_t lead = requests_[group.head().slot].rows_left();
    const std::uint32_t part =
        splits(model, group) ? std::min(lead, rows_limit(model.policy, allowed.single)) : lead;
    if (!merging) return part;
    // As long as nobody knows what a batch takes, a large one may be late for all that is in it.
    const bool blind =
        model.learns && model.reference == kNoSlot && group.head().deadline != kNever;
    if (blind) allowed.merged = std::min(allowed.merged, kRowsBlind);
    return std::max(part, fill_limit(model.policy, group.rows, allowed.merged));
}

Choice Core::choose_for_group(ModelState& model, const Pool& pool, Executors executors, Nanos now) {
    const Group& group = model.groups[pool.ready.begin()->group];
    Load load;
    load.executors = executors;
    load.merging = merges(model, group, now);
    const std::uint32_t limit = batch_limit(model, group, load.merging, rows_allowed(model, group));
    load.rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(group.rows, limit));
    load.rows_waiting = group.rows;
    load.planned = planned(model, group);
    // What a planned batch is made of changes until it leaves, and what has levels above it may
    // have to wait: only where the way to the backend and back takes as long as running it is it
    // staged, whenever an instance is to be free.
    const bool late_bound = load.planned || yields(model, group.head().level);
    load.stage =
        !late_bound || planning_latency(model, group).expected(load.rows) <= kPlannedStageMaxNs;
    load.early = load.planned && !load.stage && model.policy.direct_max == 0;
    load.group = &group;
    load.spread = requests_[group.head().slot].sequential;
    return choose(model, pool, load, now);
}

Choice Core::choose_for_retry(ModelState& model, const Pool& pool, Executors executors, Nanos now) {
    const BatchRecord& batch = batches_[pool.retries.begin()->second];
    Load load;
    load.executors = executors;
    for (const BatchMember& member : batch.members) {
        const std::uint32_t slot = requests_.find(member.request);
        if (slot == kNoSlot) continue;
        load.rows += member.rows;
        load.spread |= requests_[slot].sequential;
    }
    load.again = true;
    load.alone = batch.alone;
    if (batch.held_since == kNever) {
        load.avoid = batch.avoid;
    } else {
        load.hold = batches_.handle(pool.retries.begin()->second);
        load.others_out = batch.others_out;
    }
    // Else what leaves early would always be there before it. Trials are for others.
    load.early = model.reference != kNoSlot && model.policy.direct_max == 0 && load.hold == 0;
    return choose(model, pool, load, now);
}

// Groups that failed go before other work, the first failed first.
bool Core::dispatch_retry(ModelState& model, Nanos now) {
    Pool* first = nullptr;
    Choice chosen;
    model.each_pool([&](Pool& pool) {
        if (pool.retries.empty()) return;
        if (first != nullptr && *first->retries.begin() < *pool.retries.begin()) return;
        const Choice choice = choose_for_retry(model, pool, Executors::kOwn, now);
        if (choice.placement == nullptr) return;
        first = &pool;
        chosen = choice;
    });
    if (first == nullptr) return false;
    send_retry(model, *first, chosen, now);
    return true;
}

void Core::send_retry(ModelState& model, Pool& pool, const Choice& choice, Nanos now) {
    const std::uint32_t batch_slot = pool.retries.begin()->second;
    pool.retries.erase(pool.retries.begin());
    BatchRecord& batch = batches_[batch_slot];
    batch.retry_sequence = 0;
    if (batch.held_since == kNever) batch.go_beside();
    drop_stale(batch);
    // One that Triton's batcher formed was not sent before.
    for (const BatchMember& member : batch.members) {
        mark_dispatched(static_cast<std::uint32_t>(member.request), now);
    }
    send(model, batch_slot, choice, now);
}

// The most urgent request for which a slot is free leads the next batch.
bool Core::dispatch_next(ModelState& model, Nanos now) {
    Pool* first = nullptr;
    Choice chosen;
    model.each_pool([&](Pool& pool) {
        if (!settle(model, pool, now)) return;
        if (first != nullptr && *first->ready.begin() < *pool.ready.begin()) return;
        Choice choice = choose_for_group(model, pool, Executors::kOwn, now);
        if (choice.placement != nullptr && end_wait(model, pool, now)) {
            if (!settle(model, pool, now)) return;
            choice = choose_for_group(model, pool, Executors::kOwn, now);
        }
        if (choice.placement == nullptr) return;
        first = &pool;
        chosen = choice;
    });
    if (first == nullptr) return false;
    send_next(model, *first, chosen, now);
    return true;
}

void Core::send_next(ModelState& model, Pool& pool, const Choice& choice, Nanos now) {
    PlacementState& placement = *choice.placement;
    const std::uint32_t index = pool.ready.begin()->group;
    const Group& group = model.groups[index];
    const std::uint32_t batch_slot = batches_.add();
    BatchRecord& batch = batches_[batch_slot];
    batch.model = requests_[group.head().slot].model;
    batch.pin = group.key.pin;
    batch.signature = group.key.signature;
    batch.mergeable = group.key.mergeable;
    batch.row_size = requests_[group.head().slot].row_size;
    // Also of a level that is not bound by it: the executor is taken for as long.
    batch.reserve = group.reserve.executors;
    const bool aged = model.reference != kNoSlot && group.head().level == 0;
    if (planned(model, group) || aged) {
        form_planned(model, index, batch_slot, placement, starts_at(choice, now), now);
    } else {
        form(model, index, batch_slot, placement, now);
    }
    send(model, batch_slot, choice, now);
    plan_stale(model, now);
}

void Core::form(ModelState& model, std::uint32_t group_index, std::uint32_t batch_slot,
                const PlacementState& placement, Nanos now) {
    Group& group = model.groups[group_index];
    const bool merging = merges(model, group, now);
    const RowsAllowed allowed = rows_allowed(model, group, placement);
    const std::uint32_t fitting = batch_limit(model, group, merging, allowed);
    const std::uint32_t limit = held_rows(model, group, fitting, now);
    if (fitting < group.rows && fitting < batch_limit(model, group, merging, RowsAllowed())) {
        ++counters(requests_[group.head().slot].model).memory_limited_batches;
        batches_[batch_slot].memory_limited = true;
    }
    const BatchRecord& batch = batches_[batch_slot];
    std::uint32_t rows = 0;
    std::uint32_t passed_over = 0;
    FetchAhead ahead = fetch_ahead(group);
    for (const QueueKey& key : group.order) {
        ahead.advance();
        const std::uint32_t slot = key.slot;
        std::uint32_t part = requests_[slot].rows_left();
        if (batch.members.empty()) {
            part = std::min(part, limit);
        } else if (part > limit - rows) {
            if (++passed_over > kPassedOverMax) break;
            continue;
        }
        join_batch(batch_slot, slot, part);
        rows += part;
        if (!merging || rows >= limit) break;
    }
    take_members(model, group_index, batch_slot, now);
    refresh(model, group_index, now);
}

// Takes what was added to a batch out of the group.
void Core::take_members(ModelState& model, std::uint32_t index, std::uint32_t batch_slot,
                        Nanos now) {
    BatchRecord& batch = batches_[batch_slot];
    const std::vector<BatchMember>& added = batch.members;
    // Requests that came before and after them are touched as well, wherever they are.
    const auto fetch_neighbours = [&](std::size_t i) {
        if (i >= added.size()) return;
        const RequestRecord& request = requests_[static_cast<std::uint32_t>(added[i].request)];
        for (const Links& links : {request.in_group, request.in_model}) {
            if (links.previous != kNoSlot) requests_.prefetch(links.previous);
            if (links.next != kNoSlot) requests_.prefetch(links.next);
        }
    };
    for (std::size_t i = 0; i < kFetchAhead; ++i) fetch_neighbours(batch.taken + i);
    for (; batch.taken < added.size(); ++batch.taken) {
        fetch_neighbours(batch.taken + kFetchAhead);
        const BatchMember& member = added[batch.taken];
        const auto slot = static_cast<std::uint32_t>(member.request);
        mark_dispatched(slot, now);
        take(model, model.groups[index], slot, member.rows);
        if (!requests_[slot].queued) time_alone(slot);
    }
}

FetchAhead Core::fetch_ahead(const Group& group) const {
    return {requests_, deadlines_, group.order};
}

void Core::join_batch(std::uint32_t batch_slot, std::uint32_t slot, std::uint32_t rows) {
    RequestRecord& request = requests_[slot];
    BatchRecord& batch = batches_[batch_slot];
    batch.members.push_back({requests_.handle(slot), request.user, request.rows_sent, rows});
    ++batch.live;
    request.batches.push_back(batch_slot);
}

void Core::mark_dispatched(std::uint32_t slot, Nanos now) {
    RequestRecord& request = requests_[slot];
    if (!request.dispatched) count_queue_wait(request, now);
    request.dispatched = true;
}

void Core::drop_stale(BatchRecord& batch) const {
    const auto stale = [&](const BatchMember& m) { return requests_.find(m.request) == kNoSlot; };
    batch.members.erase(std::remove_if(batch.members.begin(), batch.members.end(), stale),
                        batch.members.end());
}

void Core::send(ModelState& model, std::uint32_t batch_slot, const Choice& choice, Nanos now) {
    PlacementState& placement = *choice.placement;
    BatchRecord& batch = batches_[batch_slot];
    Action action{};
    action.kind = ActionKind::kDispatch;
    action.at = std::numeric_limits<Nanos>::min();
    for (const BatchMember& member : batch.members) {
        action.rows += member.rows;
        const Nanos deadline = requests_[static_cast<std::uint32_t>(member.request)].deadline;
        action.at = std::max(action.at, deadline);
    }
    batch.backend = placement.backend;
    batch.rows = action.rows;
    batch.dispatched_at = now;
    note_head_start(batch, choice, now);
    if (placement.held_for != 0) note_sent_beside(batch_slot, placement);
    placement.out.push_back(batch_slot);
    placement.rows_out += batch.rows;
    batch.executor = placement.executor;
    if (batch.executor == kNoExecutor) {
        promote(placement, now);
    } else {
        executors_[batch.executor].out.push_back(batch_slot);
        start_first(executors_[batch.executor], now);
    }
    ++model.inflight_batches;
    if (model.component != kNoSlot && !rearrange_) {
        ++components_[model.component].batches_since_aged;
    }
    if (!batch.retried && model.bisect_tenths < kBisectTenthsMax) ++model.bisect_tenths;
    count_dispatch(model, batch);
    if (!batch.retried) charge_batch(model, batch);

    action.model = batch.model;
    action.backend = batch.backend;
    action.batch = batches_.handle(batch_slot);
    action.member_begin = static_cast<std::uint32_t>(members.size());
    action.member_count = static_cast<std::uint32_t>(batch.members.size());
    action.rows_padded = rows_sent(model, batch);
    const Nanos until = runs_on_until(model, placement, action.rows_padded, action.at, now);
    batch.runs_on = until != action.at;
    action.at = until;
    action.memory_limited = batch.memory_limited || batch.half;
    if (memory_.reserve(batch, placement, size_sent(model, batch))) {
        for (const std::uint32_t device : placement.devices) publish_device(device);
    }
    members.insert(members.end(), batch.members.begin(), batch.members.end());
    actions.push_back(action);
    if (!batch.mergeable) sequence_sent(batch_slot, placement, now);
}

std::uint32_t Core::rows_sent(const ModelState& model, const BatchRecord& batch) const {
    const bool pads = model.splits(batch.mergeable);
    return pads ? padded_rows(model.policy, batch.rows) : batch.rows;
}

void Core::run_model(std::uint32_t index, Nanos now) {
    ModelState& model = models_[index];
    const auto given_up = [&](const Pool& pool) {
        const bool levels = &pool == &model.shared && model.triton.has_work();
        return pool.unserved_since != kNever && (pool.has_work() || levels) &&
               now >= add_saturating(pool.unserved_since, kUnservedMaxNs);
    };
    lose_unserved(model, now);
    if (given_up(model.shared)) fail_pool(model, model.shared, kNoBackend, now);
    for (PlacementState& p : model.placements) {
        if (given_up(p.pinned)) fail_pool(model, p.pinned, p.backend, now);
    }
    fail_doomed(model, now);
    age(index, now);
    ripen(model, now);
    model.holding = model.holding && model.waiting.total() < model.policy.hold_requests;
    offer_work(index, now);
}

void Core::offer_work(std::uint32_t index, Nanos now) {
    ModelState& model = models_[index];
    plan_stale(model, now);
    if (!model.holding) run_own(model, now);
    if (!model.shares) return;
    offer_all(model, index);
    touch_component(model.component);
}

// Shared executors are given work by serve().
void Core::run_own(ModelState& model, Nanos now) {
    while (dispatch_retry(model, now) || dispatch_next(model, now)) {
    }
    run_triton(model, now);
}

// When this model must be looked at again although nothing happens to it.
Nanos Core::next_moment(ModelState& model, Nanos now) {
    Nanos next = std::min(triton_moment(model, now), aging_moment(model, now));
    model.each_pool([&](Pool& pool) {
        if (!pool.has_work()) return;
        if (pool.unserved_since != kNever) {
            next = std::min(next, add_saturating(pool.unserved_since, kUnservedMaxNs));
            return;
        }
        if (!pool.waiting.empty()) next = std::min(next, pool.waiting.begin()->first);
        if (!pool.ready.empty()) {
            next =
                std::min(next, choose_for_group(model, pool, Executors::kAll, now).blocked_until);
        }
        if (!pool.retries.empty()) {
            next =
                std::min(next, choose_for_retry(model, pool, Executors::kAll, now).blocked_until);
        }
    });
    for (const PlacementState& p : model.placements) {
        if (p.sequence_count == 0) continue;
        next = std::min(next, add_saturating(p.pinned.unserved_since, kUnservedAdmitNs));
    }
    return next;
}

}  // namespace infersched::engine
