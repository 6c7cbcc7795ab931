// Batches that leave for an instance before it is free (execution/head_start.h): one for each batch
// that is about to end. Only of models whose latency is known, and only to instances that no other
// model shares: what is most urgent when an executor becomes free is not known before.
#include <algorithm>

#include "engine/batching/load_rules.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

constexpr double kSlowdownMax = 1.05;
// Which of more instances is free next is not worth looking at all of them for each request.
constexpr std::uint32_t kInstancesMax = 16;

}  // namespace

// Of the batches that run there and that none follows; kNoSlot: there is none.
std::uint32_t Core::first_to_end(const PlacementState& placement) const {
    std::uint32_t first = kNoSlot;
    for (const std::uint32_t slot : placement.out) {
        const BatchRecord& batch = batches_[slot];
        if (batch.started_at == kNever || batch.followed) continue;
        if (first == kNoSlot || batch.ends_at < batches_[first].ends_at) first = slot;
    }
    return first;
}

// To a placement of which all instances are taken; not so early that the batch would wait there
// until the lead of its group would be late. What is sent again (nullptr) is no trial.
Departure Core::early_departure(const ModelState& model, const PlacementState& placement,
                                const Group* group, Nanos now) const {
    const HeadStart& head_start = placement.head_start;
    const Nanos usual_ns = head_start.usual_ns(placement.batch_ns);
    const Nanos trial_ns = head_start.trial_ns(placement.batch_ns);
    if (usual_ns == 0 && trial_ns == 0) return {};
    if (placement.executor != kNoExecutor || placement.slots > kInstancesMax) return {};
    const std::vector<std::uint32_t>& out = placement.out;
    if (out.size() >= placement.slots + model.policy.staged_batches_max) return {};
    // Others that wait there go before it.
    const auto follows = [&](std::uint32_t slot) {
        return batches_[slot].started_at == kNever && batches_[slot].early();
    };
    if (!std::all_of(out.begin() + placement.slots, out.end(), follows)) return {};
    const std::uint32_t first = first_to_end(placement);
    if (first == kNoSlot) return {};
    // Where batches slow each other down, when one ends is a matter of what else is sent.
    const std::uint32_t place = batches_[first].place;
    if (latency_of(model, placement).slowdown(places_.running(place)) > kSlowdownMax) return {};
    const Nanos ends_at = batches_[first].ends_at;
    // A trial is longer than usual: only of what could wait there.
    const auto can_wait = [&] {
        if (group == nullptr || trial_ns <= usual_ns) return false;
        const QueueKey& head = group->head();
        const Nanos least = bound_ns(model.policy, planning_latency(model, *group),
                                     lead_rows(model, *group, head.slot));
        return ends_at - usual_ns <= head.deadline - least;
    };
    if (HeadStart::in_time(trial_ns, ends_at - now) && can_wait()) {
        return {ends_at - trial_ns, first};
    }
    if (usual_ns == 0 || head_start.late_due()) return {};
    return {ends_at - usual_ns, first};
}

// Whether a batch of this pool that leaves early would take an instance that something more urgent
// waits for, which does not leave early.
bool Core::overtakes(const ModelState& model, const Pool& pool, const PlacementState& placement) {
    const auto waits = [&](const Pool& other) {
        return !other.ready.empty() && *other.ready.begin() < *pool.ready.begin();
    };
    return waits(model.shared) || waits(placement.pinned);
}

// From when on the time of a batch is what it would be at a free instance.
Nanos Core::starts_at(const Choice& choice, Nanos now) const {
    if (choice.follows == kNoSlot) return now;
    const PlacementState& placement = *choice.placement;
    const Nanos usual_ns = placement.head_start.usual_ns(placement.batch_ns);
    return std::max(now, batches_[choice.follows].ends_at - usual_ns);
}

// Before it is among the batches of the placement.
void Core::note_head_start(BatchRecord& batch, const Choice& choice, Nanos now) {
    HeadStart& head_start = choice.placement->head_start;
    if (choice.follows == kNoSlot) return head_start.sent();
    head_start.sent_early(batches_[choice.follows].ends_at - now);
    follow(batch, choice.follows, now);
}

void Core::follow(BatchRecord& batch, std::uint32_t before_slot, Nanos now) {
    BatchRecord& before = batches_[before_slot];
    batch.follows = batches_.handle(before_slot);
    const Nanos from = std::max(now, before.counted_as.end);
    uncount_running(before);
    uncount_running(batch);
    before.followed = true;
    const PlacementState& placement = *models_[batch.model].placement(batch.backend);
    const Nanos expected = expected_ns(batch);
    const Nanos free_at = from + expected - placement.head_start.usual_ns(expected);
    count_running(batch, free_at, add_saturating(from, 2 * expected));
}

// It will not take the instance of the batch that it follows, which counts again if it still runs.
void Core::unfollow(const BatchRecord& batch) {
    const std::uint32_t slot = batches_.find(batch.follows);
    if (slot == kNoSlot || !batches_[slot].followed) return;
    BatchRecord& before = batches_[slot];
    before.followed = false;
    count_running(before, before.counted_as.end, before.counted_as.overdue_at);
}

// A batch that was followed left. Where the instance went to another one that is out, what followed
// it takes the next one.
void Core::follow_another(PlacementState& placement, BatchHandle left, Nanos now) {
    const auto waits = [&](std::uint32_t slot) {
        return batches_[slot].follows == left && batches_[slot].started_at == kNever;
    };
    const auto found = std::find_if(placement.out.begin(), placement.out.end(), waits);
    if (found == placement.out.end()) return;
    BatchRecord& batch = batches_[*found];
    const std::uint32_t first = first_to_end(placement);
    if (first != kNoSlot) return follow(batch, first, now);
    // There are fewer instances now: it is staged as others are.
    uncount_running(batch);
    batch.follows = 0;
}

// An instance is free for it.
void Core::note_started(BatchRecord& batch, Nanos now) {
    const PlacementState& placement = *models_[batch.model].placement(batch.backend);
    const Nanos expected = expected_ns(batch);
    const Nanos early_ns = placement.head_start.usual_ns(expected);
    batch.started_at = now;
    if (batch.early()) {
        uncount_running(batch);
        unfollow(batch);
        batch.freed_at = now;
        // As if it had been sent to a free instance: it would have been on its way for so long.
        batch.started_at = std::min(now, std::max(batch.dispatched_at, now - early_ns));
    }
    batch.place = places_.place_of(placement);
    places_.start(batch.place, now);
    // Of the time before, as if as many had run.
    const auto before = static_cast<std::uint64_t>(now - batch.started_at);
    const std::uint64_t ran = places_.ran_ns(batch.place, now);
    batch.ran_before = ran - std::min(ran, before * places_.running(batch.place));
    batch.ends_at = batch.started_at + expected;
    const Nanos overdue_at = add_saturating(batch.ends_at, expected);
    count_running(batch, batch.ends_at - early_ns, overdue_at);
    if (backlog_of(models_[batch.model]) == nullptr) return;
    Component& component = components_[models_[batch.model].component];
    component.batch_ns = averaged(component.batch_ns, std::max<Nanos>(expected, 1));
}

void Core::note_left(BatchRecord& batch) {
    uncount_running(batch);
    if (batch.early() && batch.started_at == kNever) unfollow(batch);
    batch.followed = false;
}

void Core::count_running(BatchRecord& batch, Nanos free_at, Nanos overdue_at) {
    batch.counted_as = {free_at, batch.reserve, overdue_at};
    batch.counted = true;
    Backlog* backlog = backlog_of(models_[batch.model]);
    if (backlog != nullptr) backlog->start(batch.counted_as);
}

void Core::uncount_running(BatchRecord& batch) {
    if (!batch.counted) return;
    batch.counted = false;
    Backlog* backlog = backlog_of(models_[batch.model]);
    if (backlog != nullptr) backlog->end(batch.counted_as);
}

// Of one that is answered.
void Core::learn_head_start(PlacementState& placement, const BatchRecord& batch, Nanos now) const {
    const Nanos expected = batch.ends_at - batch.started_at;
    if (batch.early()) {
        placement.head_start.ran_early(expected, now - batch.freed_at,
                                       batch.freed_at - batch.dispatched_at);
    } else if (batch.started_at == batch.dispatched_at) {
        placement.head_start.ran(expected, now - batch.dispatched_at);
    }
}

}  // namespace infersched::engine
