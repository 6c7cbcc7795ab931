// Devices that are held free of other work for a batch that ran out of memory beside it.
//
// One batch at a time has its devices for itself: others that wait for the same come after it, in
// the order in which they failed. What it holds back is paid for by those that come later: together
// they take no more than a part of the time of a device, whoever sends them. A batch that may not
// have its devices for itself goes once more beside the others.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Of the time of a device so much may be held: one part in so many.
constexpr Nanos kHoldShare = 20;
// For which so much time saved up stands.
constexpr Nanos kHoldCreditNs = 4 * kSecond;
// What a hold costs at the least, however fast the batch fails.
constexpr Nanos kHoldMinNs = kMillisecond;

}  // namespace

// The placements that use devices of this one, itself included.
template <class Visit>
void Core::each_near(std::uint32_t model, const PlacementState& there, const Visit& visit) {
    std::vector<std::uint32_t> named = {model};
    for (const std::uint32_t device : there.devices) {
        const auto& models = memory_.device(device)->models;
        named.insert(named.end(), models.begin(), models.end());
    }
    std::sort(named.begin(), named.end());
    named.erase(std::unique(named.begin(), named.end()), named.end());
    for (const std::uint32_t index : named) {
        for (PlacementState& p : models_[index].placements) {
            if (&p == &there || share_devices(p, there)) visit(index, p);
        }
    }
}

// A group that was just made, behind the others.
void Core::stand_in_line(std::uint32_t slot, Nanos now) {
    BatchRecord& batch = batches_[slot];
    auto& retries = models_[batch.model].pool(batch.pin).retries;
    retries.erase({batch.retry_sequence, slot});
    batch.retry_sequence |= kAloneSequence;
    batch.alone = true;
    retries.insert({batch.retry_sequence, slot});
    take_hold(slot, now);
}

// False: others have the devices, or they were held for too long lately, or are not to be had.
bool Core::take_hold(std::uint32_t slot, Nanos now) {
    BatchRecord& batch = batches_[slot];
    ModelState& model = models_[batch.model];
    const PlacementState* there = model.placement(batch.avoid);
    if (there == nullptr || !usable(*there)) return false;
    // Those before it in its queue would hold it up, and it them.
    const auto first = model.pool(batch.pin).retries.lower_bound({kAloneSequence, 0});
    if (first->second != slot) return false;
    bool allowed = true;
    std::size_t out = 0;
    each_near(batch.model, *there, [&](std::uint32_t, const PlacementState& p) {
        allowed &= p.held_for == 0 && p.hold_paid_at <= now;
        out += p.out.size();
    });
    if (!allowed) return false;
    const BatchHandle handle = batches_.handle(slot);
    each_near(batch.model, *there, [&](std::uint32_t, PlacementState& p) { p.held_for = handle; });
    batch.held_since = now;
    batch.others_out = static_cast<std::uint32_t>(out);
    holds_.push({batch.hold_end(), handle, slot});
    mark_dirty(batch.model);
    touch_component(model.component);
    return true;
}

void Core::end_hold(std::uint32_t slot, Nanos now) {
    BatchRecord& batch = batches_[slot];
    const BatchHandle handle = batches_.handle(slot);
    const Nanos held_ns = std::clamp(now - batch.held_since, kHoldMinNs, kHoldMaxNs);
    const PlacementState& there = *models_[batch.model].placement(batch.avoid);
    each_near(batch.model, there, [&](std::uint32_t index, PlacementState& p) {
        if (p.held_for != handle) return;
        p.held_for = 0;
        p.hold_paid_at = std::max(p.hold_paid_at, now - kHoldCreditNs) + kHoldShare * held_ns;
        mark_dirty(index);
        touch_component(models_[index].component);
    });
    holds_.erase(slot);
    batch.held_since = kNever;
    batch.others_out = 0;
}

// The batch has had its turn, or is no more: the next one has.
void Core::release_hold(std::uint32_t slot, Nanos now) {
    const BatchRecord& batch = batches_[slot];
    if (batch.held_since == kNever) return;
    end_hold(slot, now);
    const PlacementState& there = *models_[batch.model].placement(batch.avoid);
    std::uint64_t first = ~std::uint64_t{0};
    std::uint32_t next = kNoSlot;
    const auto look = [&](const Pool& pool) {
        auto at = pool.retries.lower_bound({kAloneSequence, 0});
        if (at == pool.retries.end() || at->first >= first || at->second == slot) return;
        first = at->first;
        next = at->second;
    };
    each_near(batch.model, there, [&](std::uint32_t index, const PlacementState& p) {
        look(models_[index].shared);
        look(p.pinned);
    });
    if (next != kNoSlot && batches_[next].alone) take_hold(next, now);
}

void Core::release_ended_holds(Nanos now) {
    while (!holds_.empty() && holds_.top().at <= now) {
        const std::uint32_t slot = holds_.top().slot;
        if (batches_[slot].retry_sequence != 0) batches_[slot].go_beside();
        release_hold(slot, now);
    }
}

// Of batches that nothing can run any more where devices are held for them.
void Core::release_unserved_holds(const ModelState& model, Nanos now) {
    if (holds_.empty()) return;
    for (const PlacementState& p : model.placements) {
        if (p.held_for == 0) continue;
        const std::uint32_t slot = batches_.find(p.held_for);
        BatchRecord& batch = batches_[slot];
        if (batch.retry_sequence == 0 || &models_[batch.model] != &model) continue;
        const auto runs = [&](const PlacementState& other) {
            const bool its = batch.pin == kNoBackend || batch.pin == other.backend;
            return its && other.held_for == p.held_for && usable(other);
        };
        if (std::any_of(model.placements.begin(), model.placements.end(), runs)) continue;
        batch.go_beside();
        release_hold(slot, now);
    }
}

// Before the placements of a model change: a hold is of those that share devices now.
void Core::release_changed_holds(const ModelState& model, const std::vector<Placement>& placements,
                                 Nanos now) {
    for (const PlacementState& p : model.placements) {
        if (p.held_for == 0) continue;
        const bool same =
            std::any_of(placements.begin(), placements.end(), [&](const Placement& wanted) {
                return wanted.backend == p.backend &&
                       MemoryLedger::known(wanted.devices) == p.devices;
            });
        if (!same) end_hold(batches_.find(p.held_for), now);
    }
}

void Core::note_sent_beside(std::uint32_t slot, const PlacementState& placement) {
    const std::uint32_t held = batches_.find(placement.held_for);
    if (held != slot) ++batches_[held].others_out;
}

void Core::note_left_beside(const PlacementState& placement) {
    BatchRecord& held = batches_[batches_.find(placement.held_for)];
    if (--held.others_out > 0) return;
    mark_dirty(held.model);
    touch_component(models_[held.model].component);
}

}  // namespace infersched::engine
