#include "engine/admission/rows_before.h"

#include <algorithm>

#include "engine/queues/priorities.h"

namespace infersched::engine {
namespace {

// Rows that go first although they are of a lower level, or have no deadline: what came of age, and
// what will by the deadline. At most one batch in kBatchesPerAged is led so.
std::uint32_t rows_aged(const Requests& requests, const ModelState& model, const Group& group,
                        std::size_t level, Nanos deadline) {
    if (model.policy.aging_ns == 0) return 0;
    const auto behind = [&](const RequestRecord& request) {
        const std::size_t own = request.backlog.level;
        return own > level || (own == level && request.deadline == kNever);
    };
    const RequestRecord& head = requests[group.head().slot];
    if (head.aged) return behind(head) ? head.rows_left() : 0;
    if (model.young == kNoSlot) return 0;
    const RequestRecord& young = requests[model.young];
    const bool low = young.level > 1 || young.over_share;
    const bool ages = low && add_saturating(young.arrival, model.policy.aging_ns) <= deadline;
    const bool here = young.grouped() && &model.groups[young.group] == &group;
    return ages && here && behind(young) ? young.rows_left() : 0;
}

}  // namespace

std::uint32_t rows_before(const Requests& requests, const ModelState& model, const Group& group,
                          std::uint32_t queue_level, Nanos deadline, Nanos now) {
    const std::size_t level = backlog_level(queue_level);
    std::uint32_t before = rows_aged(requests, model, group, level, deadline);
    for (std::size_t l = 0; l < level; ++l) before += group.level_rows[l];
    const std::uint32_t own = group.level_rows[level] - group.endless_rows[level];
    if (own == 0) return before;
    QueueKey last = group.order.back();
    if (last.deadline == kNever) {
        auto endless = group.order.lower_bound({queue_level, kNoSlot, kNever, 0});
        if (endless != group.order.begin()) last = *--endless;
    }
    const bool behind_last = backlog_level(last.level) == level && last.deadline <= deadline;
    if (behind_last || last.deadline <= now || last.deadline == kNever) return before + own;
    const double part =
        static_cast<double>(deadline - now) / static_cast<double>(last.deadline - now);
    return before + static_cast<std::uint32_t>(own * std::clamp(part, 0.0, 1.0));
}

}  // namespace infersched::engine
