// What becomes of a batch that ran out of device memory: it runs again in halves; what cannot be
// cut runs again with the devices for itself.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Attempts of a request that cannot be cut.
constexpr std::uint32_t kAloneTriesMax = 3;
// How long other work is held back so that it may have the devices for itself.
constexpr Nanos kAloneMaxNs = kSecond;

bool share_devices(const PlacementState& a, const PlacementState& b) {
    return std::any_of(a.devices.begin(), a.devices.end(), [&](std::uint32_t device) {
        return std::find(b.devices.begin(), b.devices.end(), device) != b.devices.end();
    });
}

bool cuttable(const ModelState& model, const BatchRecord& failed) {
    if (failed.members.size() > 1) return true;
    return failed.mergeable && model.merging() && failed.rows > 1;
}

}  // namespace

void Core::cut_sizes(ModelState& model, const BatchRecord& failed) {
    ++counters(failed.model).out_of_memory_replies;
    PlacementState& placement = *model.placement(failed.backend);
    placement.memory.fail(size_sent(model, failed), failed.row_size, failed.half,
                          cuttable(model, failed));
    memory_.update_held(placement);
    memory_.touch();
}

// The error never was the members': no budget is needed, and halving ends.
void Core::retry_smaller(ModelState& model, const BatchRecord& failed, const Ending& ending,
                         Nanos now) {
    const auto first = static_cast<std::uint32_t>(failed.members.front().request);
    if (!model.policy.idempotent || requests_[first].sequential) {
        return fail_members(failed.members, ending, now);
    }
    const bool cuts = failed.mergeable && model.merging();
    const std::size_t count = failed.members.size();
    if (count == 1 && (!cuts || failed.members.front().rows < 2)) {
        return retry_alone(model, failed, ending, now);
    }
    BatchRecord halves = failed;
    halves.backend = kNoBackend;
    halves.half = true;
    std::size_t half = (count + 1) / 2;
    if (count == 1) {
        BatchMember rest = halves.members.front();
        const std::uint32_t rows = (rest.rows + 1) / 2;
        halves.members.front().rows = rows;
        rest.row_begin += rows;
        rest.rows -= rows;
        halves.members.push_back(rest);
    }
    retry(model, halves, 0, half, failed.tries);
    retry(model, halves, half, halves.members.size(), failed.tries);
}

// Elsewhere if there is another device for it; else when nothing else is out on its own.
void Core::retry_alone(ModelState& model, const BatchRecord& failed, const Ending& ending,
                       Nanos now) {
    const PlacementState& there = *model.placement(failed.backend);
    const bool elsewhere =
        failed.pin == kNoBackend &&
        std::any_of(model.placements.begin(), model.placements.end(), [&](const auto& p) {
            return usable(p) && !p.resting(now) && &p != &there && !share_devices(p, there);
        });
    if (failed.tries + 1 >= kAloneTriesMax) {
        Ending refused = ending;
        refused.reason = Reason::kDeviceMemory;
        refused.code = StatusCode::kResourceExhausted;
        const double size = static_cast<double>(failed.rows) * failed.row_size;
        refused.predicted_bytes = static_cast<std::uint64_t>(there.memory.added_bytes(size, 0));
        for (const std::uint32_t device : there.devices) {
            refused.free_bytes = memory_.device(device)->memory.free_bytes;
        }
        return fail_members(failed.members, refused, now);
    }
    retry_group(model, failed, failed.members, failed.tries + 1);
    if (elsewhere) return;
    const std::uint32_t slot =
        requests_[static_cast<std::uint32_t>(failed.members.front().request)].batches.back();
    const BatchHandle handle = batches_.handle(slot);
    batches_[slot].alone_until = add_saturating(now, kAloneMaxNs);
    for (ModelState& other : models_) {
        for (PlacementState& p : other.placements) {
            const bool shares = &p == &there || share_devices(p, there);
            if (shares && p.held_for == 0) p.held_for = handle;
        }
    }
}

// Whether nothing else is out where work is held back for this batch.
bool Core::held_idle(BatchHandle batch) const {
    for (const ModelState& model : models_) {
        for (const PlacementState& p : model.placements) {
            if (p.held_for == batch && !p.out.empty()) return false;
        }
    }
    return true;
}

void Core::note_others_left(const PlacementState& placement) {
    const std::uint32_t slot = batches_.find(placement.held_for);
    if (slot == kNoSlot) return;
    mark_dirty(batches_[slot].model);
    touch_component(models_[batches_[slot].model].component);
}

// The batch has had its turn, or is no more.
void Core::release_hold(std::uint32_t slot) {
    BatchRecord& batch = batches_[slot];
    if (batch.alone_until == kNever) return;
    batch.alone_until = kNever;
    const BatchHandle handle = batches_.handle(slot);
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        for (PlacementState& p : models_[index].placements) {
            if (p.held_for != handle) continue;
            p.held_for = 0;
            mark_dirty(index);
            touch_component(models_[index].component);
        }
    }
}

}  // namespace infersched::engine
