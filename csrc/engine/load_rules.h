// Rules of batches formed by learned latency, for who forms them and for who foresees them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/batch_former.h"
#include "engine/engine.h"
#include "engine/latency_model.h"

namespace infersched::engine {

// A batch that is smaller than its target goes this part of the lead's time before it must.
inline constexpr Nanos kSlackShare = 10;

inline Nanos bound_ns(const ModelPolicy& policy, const LatencyModel& latency, std::uint32_t rows) {
    return latency.bound(padded_rows(policy, rows));
}

// The most rows up to `rows_max` that are done within `budget_ns`; 0: none.
inline std::uint32_t rows_within(const ModelPolicy& policy, const LatencyModel& latency,
                                 Nanos budget_ns, std::uint32_t rows_max) {
    const std::vector<std::uint32_t>& sizes = policy.mandatory_rows;
    if (budget_ns <= 0) return 0;
    if (sizes.empty()) return latency.largest_within(budget_ns, rows_max);
    for (auto size = sizes.rbegin(); size != sizes.rend(); ++size) {
        if (latency.bound(*size) <= budget_ns) return std::min(*size, rows_max);
    }
    return 0;
}

}  // namespace infersched::engine
