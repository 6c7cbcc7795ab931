// Where a request waits, and when its group may be dispatched.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {

// Counts a request as queued, wherever it waits.
void Core::list_queued(ModelState& model, std::uint32_t slot) {
    RequestRecord& request = requests_[slot];
    request.queued = true;
    if (model.young == kNoSlot) model.young = slot;
    model.by_age.append<&RequestRecord::in_model>(requests_, slot);
    model.waiting.add(request.asked_level, request.bytes);
    model.queued_rows += request.rows;
    if (model.policy.queue_age_max_ns > 0) model.ages.add(requests_, slot);
    mark_dirty(request.model);
}

// The opposite.
void Core::unlist(ModelState& model, std::uint32_t slot) {
    RequestRecord& request = requests_[slot];
    request.queued = false;
    if (model.young == slot) model.young = request.in_model.next;
    model.by_age.unlink<&RequestRecord::in_model>(requests_, slot);
    model.waiting.remove(request.asked_level, request.bytes);
    if (model.policy.queue_age_max_ns > 0) model.ages.remove(requests_, slot);
}

void Core::enqueue(ModelState& model, std::uint32_t slot, Nanos now) {
    list_queued(model, slot);
    join_group(model, slot, now);
}

void Core::join_group(ModelState& model, std::uint32_t slot, Nanos now) {
    RequestRecord& request = requests_[slot];
    Group& group = model.groups[request.group];
    const QueueKey key = request.key(slot);
    group.row_size = request.row_size;
    group.order.insert(nodes_, key);
    deadlines_.erase(slot);
    time_inserted(group, key);
    group.by_age.append<&RequestRecord::in_group>(requests_, slot);
    count_in(model, group, slot, now);
    // More rows never make a ready group unready: only a new head moves it, or so many more rows
    // that it must start earlier.
    const bool grown = group.rows_planned > 0 && group.rows > group.rows_planned * 9 / 8;
    if (group.index != Group::Index::kReady || group.head().sequence == key.sequence || grown) {
        refresh(model, request.group, now);
    }
}

// Takes out a request of which nothing was sent; it stays queued.
void Core::leave_group(std::uint32_t slot, Nanos now) {
    RequestRecord& request = requests_[slot];
    ModelState& model = models_[request.model];
    Group& group = model.groups[request.group];
    group.order.erase(nodes_, request.key(slot));
    time_alone(slot);
    group.by_age.unlink<&RequestRecord::in_group>(requests_, slot);
    count_rows_out(group, request, request.rows);
    count_out(model, group, request);
    refresh(model, request.group, now);
}

// Takes `rows` of a queued request for a batch, or all that is left when it ends. The caller
// refreshes the group afterwards.
void Core::take(ModelState& model, Group& group, std::uint32_t slot, std::uint32_t rows) {
    RequestRecord& request = requests_[slot];
    request.rows_sent += rows;
    count_rows_out(group, request, rows);
    model.queued_rows -= rows;
    if (request.rows_left() > 0) return;
    group.order.erase(nodes_, request.key(slot));
    group.by_age.unlink<&RequestRecord::in_group>(requests_, slot);
    count_out(model, group, request);
    unlist(model, slot);
}

void Core::unqueue(std::uint32_t slot, Nanos now) {
    const RequestRecord& request = requests_[slot];
    ModelState& model = models_[request.model];
    mark_dirty(request.model);
    if (request.held) {
        sequences_[sequential_[slot].sequence].held.unlink<&RequestRecord::in_group>(requests_,
                                                                                     slot);
        model.queued_rows -= request.rows;
        return unlist(model, slot);
    }
    if (request.in_levels) return leave_levels(model, slot);
    take(model, model.groups[request.group], slot, request.rows_left());
    refresh(model, request.group, now);
}

// Sets the timer of a request that is in no group's order.
void Core::time_alone(std::uint32_t slot) {
    const RequestRecord& request = requests_[slot];
    if (request.deadline == kNever || deadlines_.contains(slot)) return;
    deadlines_.push({request.deadline, request.sequence, slot});
}

void Core::time_inserted(Group& group, const QueueKey& key) {
    const auto of_level = std::find_if(group.timed.begin(), group.timed.end(),
                                       [&](const QueueKey& k) { return k.level == key.level; });
    if (of_level == group.timed.end()) {
        group.timed.push_back(key);
    } else if (key < *of_level) {
        deadlines_.erase(of_level->slot);
        *of_level = key;
    } else {
        return;
    }
    time_alone(key.slot);
}

// After requests have left a group. Those that were its first keep their timers, if they live.
void Core::time_firsts(Group& group) {
    std::size_t kept = 0;
    for (const QueueKey& known : group.timed) {
        const auto first = group.order.lower_bound(known);
        if (first == group.order.end() || first->level != known.level) continue;
        if (first->sequence != known.sequence) time_alone(first->slot);
        group.timed[kept++] = *first;
    }
    group.timed.resize(kept);
}

bool Core::merges(const ModelState& model, const Group& group, Nanos now) const {
    return splits(model, group) && !unmerged(model, group.key.signature, now);
}

// A group waits for more rows until its oldest request has waited queue_delay_max, or its lead must
// leave to meet the deadline: a batch takes batch_ns on average, and a quarter of that, or what the
// way there and back may take, is the margin.
Nanos Core::ready_time(const ModelState& model, const Group& group) const {
    constexpr Nanos kAtOnce = std::numeric_limits<Nanos>::min();
    const ModelPolicy& policy = model.policy;
    if (model.learns && group.head().deadline != kNever) return kAtOnce;
    if (policy.queue_delay_max_ns == 0 || !splits(model, group)) return kAtOnce;
    if (group.rows >= rows_enough(policy)) return kAtOnce;
    const Nanos oldest = requests_[group.by_age.first].arrival;
    const Nanos waited = add_saturating(oldest, policy.queue_delay_max_ns);
    if (group.head().deadline == kNever) return waited;
    const Nanos margin_ns = std::max(model.batch_ns / 4, kAnswerMarginMinNs);
    return std::min(waited, group.head().deadline - model.batch_ns - margin_ns);
}

void Core::unindex(ModelState& model, std::uint32_t index) {
    Group& group = model.groups[index];
    Pool& pool = model.pool(group.key.pin);
    if (group.index == Group::Index::kReady) pool.ready.erase({group.ready_key, index});
    if (group.index == Group::Index::kWaiting) pool.waiting.erase({group.ready_at, index});
    group.index = Group::Index::kNone;
}

void Core::refresh(ModelState& model, std::uint32_t index, Nanos now) {
    Group& group = model.groups[index];
    time_firsts(group);
    if (group.order.empty()) {
        unindex(model, index);
        model.groups.release(index);
        return;
    }
    if (planned(model, group)) return mark_stale(model, index);
    group.rows_planned = 0;
    const Nanos ready_at = ready_time(model, group);
    if (ready_at > now) {
        index_waiting(model, index, ready_at);
    } else {
        index_ready(model, index, rank(model, group));
    }
}

void Core::refresh_all(ModelState& model, Nanos now) {
    for (std::uint32_t index = 0; index < model.groups.slots(); ++index) {
        if (!model.groups[index].order.empty()) refresh(model, index, now);
    }
}

// Moves the groups that have waited long enough. Those that are planned stay where they are until
// plan_stale().
void Core::ripen(ModelState& model, Nanos now) {
    model.each_pool([&](Pool& pool) {
        for (auto next = pool.waiting.begin(); next != pool.waiting.end() && next->first <= now;) {
            const std::uint32_t index = next->second;
            ++next;
            const Group& group = model.groups[index];
            if (planned(model, group)) {
                mark_stale(model, index);
            } else {
                index_ready(model, index, rank(model, group));
            }
        }
    });
}

}  // namespace infersched::engine
