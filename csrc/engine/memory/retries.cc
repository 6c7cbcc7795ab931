// What becomes of a batch that ran out of device memory: it runs again in halves; what cannot be
// cut runs again with the devices for itself.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

bool cuttable(const ModelState& model, const BatchRecord& failed) {
    if (failed.members.size() > 1) return true;
    return model.splits(failed.mergeable) && failed.rows > 1;
}

}  // namespace

void Core::cut_sizes(ModelState& model, BatchRecord& failed) {
    ++counters(failed.model).out_of_memory_replies;
    PlacementState& placement = *model.placement(failed.backend);
    MemoryNeed& need = placement.memory;
    const double size = size_sent(model, failed);
    const double cap = need.cap();
    const bool cuts = cuttable(model, failed);
    if (failed.cap_before > 0 && (cuts || failed.memory_tries == 0)) {
        need.fail_half(size, failed.row_size, failed.cap_before);
    } else if (!cuts || failed.half) {
        need.count_failure();
    } else if (need.fail(size, failed.row_size)) {
        failed.cut_backend = failed.backend;
        failed.cap_before = cap;
    }
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
    const bool cuts = model.splits(failed.mergeable);
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

// Elsewhere if there is another device for it, then with the device for itself.
void Core::retry_alone(ModelState& model, const BatchRecord& failed, const Ending& ending,
                       Nanos now) {
    const PlacementState& there = *model.placement(failed.backend);
    if (failed.alone || failed.memory_tries + 1 >= kMemoryTriesMax) {
        return refuse_memory(model, failed, ending, now);
    }
    const bool elsewhere =
        failed.pin == kNoBackend && failed.memory_tries == 0 &&
        std::any_of(model.placements.begin(), model.placements.end(), [&](const auto& p) {
            return usable(p) && !p.resting(now) && !share_devices(p, there);
        });
    retry_group(model, failed, failed.members, failed.tries);
    const auto request = static_cast<std::uint32_t>(failed.members.front().request);
    const std::uint32_t slot = requests_[request].batches.back();
    ++batches_[slot].memory_tries;
    if (!elsewhere) stand_in_line(slot, now);
}

// What runs out of memory as it is says nothing of the size of the batches that it was in.
void Core::refuse_memory(ModelState& model, const BatchRecord& failed, const Ending& ending,
                         Nanos now) {
    PlacementState* cut = failed.cap_before > 0 ? model.placement(failed.cut_backend) : nullptr;
    if (cut != nullptr) {
        cut->memory.pardon(failed.cap_before);
        memory_.touch();
    }
    const PlacementState& there = *model.placement(failed.backend);
    Ending refused = ending;
    refused.reason = Reason::kDeviceMemory;
    refused.code = StatusCode::kResourceExhausted;
    const double size = static_cast<double>(failed.rows) * failed.row_size;
    refused.predicted_bytes = static_cast<std::uint64_t>(there.memory.added_bytes(size, 0));
    // Which of them has run out is not known: the one with the least. It needs more than that.
    std::uint64_t least = ~std::uint64_t{0};
    for (const std::uint32_t index : there.devices) {
        const DeviceMemory& memory = memory_.device(index)->memory;
        if (memory.known) least = std::min(least, memory.free_bytes);
    }
    if (least != ~std::uint64_t{0}) {
        refused.free_bytes = least;
        refused.predicted_bytes = std::max(refused.predicted_bytes, least + 1);
    }
    fail_members(failed.members, refused, now);
}

}  // namespace infersched::engine
