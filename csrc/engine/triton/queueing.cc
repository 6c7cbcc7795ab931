// `batching: triton`: how requests enter and leave the levels of a model.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {

// What must go to one backend, or is larger than a batch, is queued as in every other model.
bool Core::triton_takes(const ModelState& model, const Request& request) const {
    return model.policy.triton != nullptr && request.pinned_backend == kNoBackend &&
           request.rows <= model.policy.rows_max;
}

std::uint32_t Core::triton_level(const ModelState& model, std::uint64_t priority) const {
    const TritonBatching& batching = *model.policy.triton;
    const bool named = priority > 0 && priority <= batching.levels.size();
    return named ? static_cast<std::uint32_t>(priority) : batching.default_level;
}

bool Core::triton_full(const ModelState& model, const Request& request) const {
    if (!triton_takes(model, request)) return false;
    const std::uint32_t level = triton_level(model, request.priority) - 1;
    const std::uint32_t requests_max = model.policy.triton->levels[level].requests_max;
    return requests_max > 0 && model.triton.levels[level].requests >= requests_max;
}

// The timeout of a request only shortens one that the model has.
void Core::join_levels(std::uint32_t slot, const Request& request, Nanos now) {
    RequestRecord& record = requests_[slot];
    ModelState& model = models_[record.model];
    record.level = record.asked_level = triton_level(model, request.priority);
    list_queued(model, slot);
    record.signature = request.signature;
    record.mergeable = request.mergeable && request.rows > 0;
    record.enqueued_at = now;
    const TritonQueuePolicy& policy = model.policy.triton->levels[record.level - 1];
    Nanos timeout = policy.timeout_ns;
    if (policy.timeout_override && request.timeout_ns > 0) {
        timeout = std::min(timeout, request.timeout_ns);
    }
    record.timeout_at = timeout > 0 ? add_saturating(now, timeout) : kNever;
    record.in_levels = true;
    model.triton.push(requests_, slot);
}

// Out of its level, and no longer queued.
void Core::leave_levels(ModelState& model, std::uint32_t slot) {
    RequestRecord& request = requests_[slot];
    model.triton.erase(requests_, slot);
    request.in_levels = false;
    request.rows_sent = request.rows;
    model.queued_rows -= request.rows;
    unlist(model, slot);
}

// A formed batch that nobody waits for any more.
void Core::drop_formed(std::uint32_t batch_slot) {
    ModelState& model = models_[batches_[batch_slot].model];
    TritonQueue& queue = model.triton;
    const auto place = std::find(queue.formed.begin(), queue.formed.end(), batch_slot);
    if (place + 1 == queue.formed.end()) queue.growing = false;
    queue.formed.erase(place);
    mark_dirty(batches_[batch_slot].model);
    batches_.remove(batch_slot);
}

// What was formed goes as it is, before other work.
void Core::release_formed(ModelState& model) {
    for (const std::uint32_t slot : model.triton.formed) {
        batches_[slot].formed = false;
        batches_[slot].retry_sequence = ++retry_sequence_;
        model.shared.retries.insert({batches_[slot].retry_sequence, slot});
    }
    model.triton.formed.clear();
    model.triton.growing = false;
}

// After a change of policy: every request waits where it would have waited from the start, but for
// its timeout, which it keeps.
void Core::rebuild_levels(ModelState& model, Nanos now) {
    release_formed(model);
    std::vector<std::uint32_t> queued;
    for (std::uint32_t slot = model.by_age.first; slot != kNoSlot;
         slot = requests_[slot].in_model.next) {
        queued.push_back(slot);
    }
    for (const std::uint32_t slot : queued) {
        if (requests_[slot].in_levels) model.triton.erase(requests_, slot);
    }
    const TritonBatching* batching = model.policy.triton.get();
    model.triton.levels.assign(batching != nullptr ? batching->levels.size() : 0, TritonLevel());
    for (const std::uint32_t slot : queued) rebuild_place(model, slot, now);
}

void Core::rebuild_place(ModelState& model, std::uint32_t slot, Nanos now) {
    RequestRecord& request = requests_[slot];
    const bool to_levels = model.policy.triton != nullptr && request.rows_sent == 0 &&
                           !request.sequential && request.rows <= model.policy.rows_max;
    if (request.in_levels) {
        if (!to_levels) {
            request.in_levels = request.delayed = false;
            request.group = model.groups.get({request.signature, kNoBackend, request.mergeable});
            return join_group(model, slot, now);
        }
    } else {
        if (!to_levels) return;
        const GroupKey key = model.groups[request.group].key;
        if (key.pin != kNoBackend) return;
        leave_group(slot, now);
        request.signature = key.signature;
        request.mergeable = key.mergeable;
        request.enqueued_at = request.arrival;
        request.timeout_at = kNever;
        request.in_levels = true;
    }
    model.waiting.remove(request.asked_level, request.bytes);
    request.level = request.asked_level = triton_level(model, request.asked_level);
    model.waiting.add(request.asked_level, request.bytes);
    model.triton.push(requests_, slot);
}

}  // namespace infersched::engine
