// Requests of low levels that have waited long: they go before all levels, one after the other.
//
// The oldest request of a model that is not of its highest level and has waited the model's aging
// time leads the next batch that it can be in. At most one batch in kBatchesPerAged is led so, or
// a flood of low levels would, aged, displace the high ones. So the n-th oldest leads a batch no
// later than when kBatchesPerAged * n batches of the model have gone after it came of age.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {

void Core::age(ModelState& model, Nanos now) {
    const Nanos aging_ns = model.policy.aging_ns;
    if (aging_ns == 0 || model.batches_since_aged < kBatchesPerAged) return;
    while (model.young != kNoSlot) {
        const std::uint32_t slot = model.young;
        RequestRecord& request = requests_[slot];
        if (now < add_saturating(request.arrival, aging_ns)) return;
        model.young = request.in_model.next;
        // What waits behind others of its sequence goes when they have gone.
        const bool low = request.level > 1 || request.over_share;
        if (!low || request.held || request.in_levels) continue;
        model.batches_since_aged = 0;
        return make_first(model, slot, now);
    }
}

void Core::make_first(ModelState& model, std::uint32_t slot, Nanos now) {
    RequestRecord& request = requests_[slot];
    Group& group = model.groups[request.group];
    group.order.erase(nodes_, request.key(slot));
    time_alone(slot);
    request.aged = true;
    group.order.insert(nodes_, request.key(slot));
    deadlines_.erase(slot);
    time_inserted(group, request.key(slot));
    refresh(model, request.group, now);
}

// When the next request comes of age; kNever: none, or not before a batch has gone.
Nanos Core::aging_moment(const ModelState& model, Nanos now) const {
    const Nanos aging_ns = model.policy.aging_ns;
    const bool next = aging_ns > 0 && model.batches_since_aged >= kBatchesPerAged;
    if (!next || model.young == kNoSlot) return kNever;
    // It may have come of age in this step, before the last batch went.
    return std::max(add_saturating(requests_[model.young].arrival, aging_ns), now + 1);
}

}  // namespace infersched::engine
