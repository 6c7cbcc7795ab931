// Priority levels of a model: which one a request has, and the objective that goes with it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/admission/backlog.h"
#include "engine/counters.h"
#include "engine/engine.h"

namespace infersched::engine {

// Set in the level of requests without an objective: they are served after all others.
inline constexpr std::uint32_t kBestEffortBit = 1u << 30;
inline constexpr std::uint32_t kLevelMask = kBestEffortBit - 1;

// Of RequestRecord::queue_level: eight levels in two parts each, lower ones, those without an
// objective.
inline std::size_t backlog_level(std::uint32_t queue_level) {
    if ((queue_level & kBestEffortBit << 1) != 0) return Backlog::kLevels - 1;
    return std::min<std::size_t>(std::max(queue_level, 2u) - 2, Backlog::kLevels - 2);
}

// One more request of such a level with an objective or a deadline.
inline LevelCounters& count_slo(ModelCounters& page, std::uint32_t level) {
    const std::size_t place = std::max(level & kLevelMask, 1u) - 1;
    LevelCounters& of_level = page.levels[std::min(place, kCountersLevelsMax - 1)];
    ++page.slo_total;
    ++of_level.slo_total;
    return of_level;
}

// The level (1 = highest) that a request of this priority is queued at, with kBestEffortBit.
std::uint32_t queue_level(const ModelPolicy& policy, std::uint64_t priority);

// The latency objective of a queue level; 0: none.
Nanos level_slo_ns(const ModelPolicy& policy, std::uint32_t level);

// The part of its requests up to which a level goes before those below it; 0: always.
double part_of_level(const ModelPolicy& policy, std::uint32_t level);

// Whether some level is served as lower ones are beyond its own part.
bool yields_beyond(const ModelPolicy& policy);

// Levels with an objective are held to 0 or more, and to the priority levels there are.
void normalise_levels(ModelPolicy& policy);

}  // namespace infersched::engine
