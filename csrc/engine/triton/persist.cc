// Saves and loads the levels of a model with TritonBatching, and the batches that wait there.
#include "engine/archive.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

// The order is state: it is not always that of admission.
template <class Archive>
void archive_list(Archive& archive, TritonQueue& queue, Requests& requests, RequestList& list) {
    std::vector<std::uint32_t> slots;
    for (std::uint32_t slot = list.first; slot != kNoSlot; slot = requests[slot].in_group.next) {
        slots.push_back(slot);
    }
    archive(slots);
    if constexpr (Archive::kReads) {
        for (const std::uint32_t slot : slots) {
            if (!archive.require(slot < requests.slots() && requests[slot].in_levels)) return;
            const std::uint32_t level = requests[slot].level;
            if (!archive.require(level > 0 && level <= queue.levels.size())) return;
            queue.push(requests, slot);
        }
    }
}

}  // namespace

template <class Archive>
void Core::archive_triton(Archive& archive, ModelState& model) {
    if (model.policy.triton == nullptr) return;
    TritonQueue& queue = model.triton;
    if constexpr (Archive::kReads) queue.levels.resize(model.policy.triton->levels.size());
    for (TritonLevel& level : queue.levels) {
        archive_list(archive, queue, requests_, level.waiting);
        archive_list(archive, queue, requests_, level.delayed);
    }
    archive(queue.formed);
    archive(queue.growing);
    archive(queue.look_at);
    archive(queue.sweep_at);
    for (const std::uint32_t slot : queue.formed) {
        const bool sound = slot < batches_.slots() && batches_[slot].formed;
        if (!archive.require(sound)) return;
    }
    archive.require(!queue.growing || !queue.formed.empty());
}

template void Core::archive_triton(ArchiveWriter&, ModelState&);
template void Core::archive_triton(ArchiveReader&, ModelState&);

}  // namespace infersched::engine
