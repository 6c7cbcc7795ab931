// Requests of low levels that have waited long: they go before all levels, one after the other.
//
// A request that is not of the highest level of its model comes of age when it has waited the
// model's aging time. Of all models that share executors, the one that came of age first leads the
// next batch that it can be in. At most one batch in kBatchesPerAged is led so, or a flood of low
// levels would, aged, displace the high ones. So the n-th of them leads a batch no later than when
// kBatchesPerAged * n batches of these models have gone after it came of age, and those that one
// step sent to executors that were free together.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {

// When the oldest low request of a model that is still young comes of age; kNever: there is none.
Nanos Core::comes_of_age(ModelState& model, Nanos now) {
    const Nanos aging_ns = model.policy.aging_ns;
    if (aging_ns == 0) return kNever;
    for (; model.young != kNoSlot; model.young = requests_[model.young].in_model.next) {
        const RequestRecord& request = requests_[model.young];
        const Nanos at = add_saturating(request.arrival, aging_ns);
        // What waits behind others of its sequence goes when they have gone.
        const bool low = request.level > 1 || request.over_share;
        if (at > now || (low && !request.held && !request.in_levels)) return at;
    }
    return kNever;
}

// Has a model wait for its turn once a request of it has come of age.
void Core::list_aged(ModelState& model, std::uint32_t index, Nanos now) {
    if (model.listed_aged || model.component == kNoSlot || rearrange_) return;
    const Nanos at = comes_of_age(model, now);
    if (at > now) return;
    model.listed_aged = true;
    components_[model.component].aged.push({at, index});
}

void Core::age(std::uint32_t index, Nanos now) {
    ModelState& model = models_[index];
    list_aged(model, index, now);
    if (model.component == kNoSlot || rearrange_) return;
    Component& component = components_[model.component];
    while (component.batches_since_aged >= kBatchesPerAged && !component.aged.empty()) {
        const AgedModels::Entry first = component.aged.pop();
        ModelState& oldest = models_[first.model];
        oldest.listed_aged = false;
        mark_dirty(first.model);
        const Nanos at = comes_of_age(oldest, now);
        const AgedModels::Entry actual{at, first.model};
        // What it was listed for may have gone meanwhile.
        if (at > now || (!component.aged.empty() && component.aged.first().before(actual))) {
            list_aged(oldest, first.model, now);
            continue;
        }
        const std::uint32_t slot = oldest.young;
        oldest.young = requests_[slot].in_model.next;
        component.batches_since_aged = 0;
        make_first(oldest, slot, now);
        list_aged(oldest, first.model, now);
        if (first.model != index) offer_work(first.model, now);
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

// When a model is to wait for its turn; kNever: it does, or has none that could come of age.
Nanos Core::aging_moment(const ModelState& model, Nanos now) const {
    const Nanos aging_ns = model.policy.aging_ns;
    if (aging_ns == 0 || model.listed_aged || model.young == kNoSlot) return kNever;
    // It may have come of age in this step.
    return std::max(add_saturating(requests_[model.young].arrival, aging_ns), now + 1);
}

}  // namespace infersched::engine
