// Tenants: who is over its share of device time.
#include <algorithm>

#include "engine/core.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {

// nullptr: there is one tenant only.
FairShares* Core::shares_of(const ModelState& model) {
    if (tenant_weights_.size() < 2 || rearrange_ || model.component == kNoSlot) return nullptr;
    return &components_[model.component].shares;
}

// Of one that is no longer configured: as everybody else.
double Core::weight_of(std::uint32_t tenant) const {
    return tenant_weights_[tenant < tenant_weights_.size() ? tenant : 0];
}

// What the request takes of an executor, and whether its tenant is over its share.
void Core::weigh(ModelState& model, const Request& request, Arrival& arrival, Nanos now) {
    arrival.group = model.groups.find(arrival.key);
    FairShares* shares = shares_of(model);
    if (shares == nullptr) return;
    const std::uint32_t rows = std::max(request.rows, 1u);
    const Component& component = components_[model.component];
    const Nanos budget = arrival.deadline == kNever ? kNever : arrival.deadline - now;
    Nanos patience = std::min(budget, FairShares::kPatienceNs);
    Nanos starts_ns = 0;
    if (model.reference != kNoSlot) {
        const LatencyModel& latency = reference_latency(model);
        const std::uint32_t with =
            arrival.group == kNoSlot ? 1 : model.groups[arrival.group].target;
        const Nanos batch_ns = latency.expected(padded_rows(model.policy, std::max(with, rows)));
        arrival.share_ns = batch_ns / std::max(with, rows) * rows;
        patience = std::max<Nanos>(patience - batch_ns, 0);
        // Whole batches are started: the one that it is in, and where executors are free together,
        // all of theirs.
        const std::uint32_t starts = component.backlog.free_by(add_saturating(now, patience));
        starts_ns = batch_ns * std::max(starts, 1u);
    } else if (!model.placements.empty()) {
        arrival.share_ns = model.placements.front().ns_per_row * rows;
    }
    const Nanos before_ns = std::max(patience * std::max(component.slots, 1u), starts_ns);
    arrival.over_share = shares->over(arrival.tenant, weight_of(arrival.tenant), before_ns, now);
}

// Of a weighed request for which a queue is full: whether its tenant would, served fairly, wait
// longer than for all that is queued.
bool Core::over_share_of_queue(const ModelState& model, const Arrival& arrival, Nanos now) {
    FairShares* shares = shares_of(model);
    if (shares == nullptr) return false;
    Nanos queued_ns = 0;
    const auto queued = static_cast<Nanos>(model.waiting.total());
    if (__builtin_mul_overflow(arrival.share_ns, queued, &queued_ns)) queued_ns = kNever;
    const bool over = shares->over(arrival.tenant, weight_of(arrival.tenant), queued_ns, now);
    shares->refuse(arrival.tenant, now);
    return over;
}

// Every member pays its part of the batch that it is in.
void Core::charge_batch(const ModelState& model, const BatchRecord& batch) {
    if (tenant_weights_.size() < 2 || rearrange_ || model.reference == kNoSlot) return;
    FairShares& shares = components_[model.component].shares;
    const LatencyModel& latency = reference_latency(model);
    const Nanos row_ns = latency.expected(rows_sent(model, batch)) / std::max(batch.rows, 1u);
    for (const BatchMember& member : batch.members) {
        const RequestRecord& request = requests_[static_cast<std::uint32_t>(member.request)];
        const Nanos thought_ns =
            request.share_ns / std::max(request.rows, 1u) * static_cast<Nanos>(member.rows);
        shares.correct(request.tenant, row_ns * static_cast<Nanos>(member.rows) - thought_ns);
    }
}

// A request found no room, and others may have to give way for it: not where its objective leaves
// no time to wait until an executor is free, and not where they may be on executors of their own.
void Core::miss_share(const ModelState& model, std::uint32_t tenant, std::uint32_t level,
                      Nanos budget_ns, Nanos work_ns, Nanos now) {
    FairShares* shares = shares_of(model);
    if (shares == nullptr || model.reference == kNoSlot) return;
    const Component& component = components_[model.component];
    if (model.shares && domains_[model.shared.domain].executors.size() < component.slots) return;
    const Nanos wait_ns = component.batch_ns / std::max(component.slots, 1u);
    if (budget_ns < reference_latency(model).expected(1) + wait_ns) return;
    shares->deny(tenant, backlog_level(level << 1), work_ns, now);
}

}  // namespace infersched::engine
