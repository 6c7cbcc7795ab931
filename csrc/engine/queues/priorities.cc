#include "engine/queues/priorities.h"

#include <algorithm>

namespace infersched::engine {

std::uint32_t queue_level(const ModelPolicy& policy, std::uint64_t priority) {
    const bool named = priority > 0 && priority <= policy.priority_levels;
    const std::uint32_t level =
        named ? static_cast<std::uint32_t>(priority) : policy.default_priority;
    const bool best_effort = level <= policy.levels.size() && policy.levels[level - 1].best_effort;
    return best_effort ? level | kBestEffortBit : level;
}

Nanos level_slo_ns(const ModelPolicy& policy, std::uint32_t level) {
    if ((level & kBestEffortBit) != 0) return 0;
    const bool own = level <= policy.levels.size() && policy.levels[level - 1].slo_ns > 0;
    return own ? policy.levels[level - 1].slo_ns : policy.slo_ns;
}

double part_of_level(const ModelPolicy& policy, std::uint32_t level) {
    return level <= policy.levels.size() ? policy.levels[level - 1].attainment : 0;
}

bool yields_beyond(const ModelPolicy& policy) {
    return std::any_of(policy.levels.begin(), policy.levels.end(),
                       [](const LevelPolicy& level) { return level.attainment > 0; });
}

void normalise_levels(ModelPolicy& policy) {
    policy.priority_levels = std::clamp(policy.priority_levels, 1u, kLevelMask);
    policy.default_priority = std::clamp(policy.default_priority, 1u, policy.priority_levels);
    policy.slo_ns = std::max<Nanos>(policy.slo_ns, 0);
    policy.aging_ns = std::max<Nanos>(policy.aging_ns, 0);
    if (policy.levels.size() > policy.priority_levels) policy.levels.resize(policy.priority_levels);
    for (LevelPolicy& level : policy.levels) {
        level.slo_ns = std::max<Nanos>(level.slo_ns, 0);
        const bool part = level.attainment > 0 && level.attainment < 1 && !level.best_effort;
        if (!part) level.attainment = 0;
    }
}

}  // namespace infersched::engine
