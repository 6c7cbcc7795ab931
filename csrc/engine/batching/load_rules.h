// Rules of batches formed by learned latency, for who forms them and for who foresees them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/batching/batch_former.h"
#include "engine/engine.h"
#include "engine/latency/model.h"

namespace infersched::engine {

// A batch that is smaller than its target goes this part of the lead's time before it must.
inline constexpr Nanos kSlackShare = 10;

// The part of batches that bounds are to cover, so that of the requests that are answered no more
// than 1 - attainment are late. What ends later than its bound makes those late that had no time to
// spare, a part of its members, and most batches have time to spare: under twice the load that
// there is room for, a third or less of the batches' part. Wider bounds answer fewer requests, and
// those refused for them are misses as well.
inline double batches_covered(double attainment) {
    constexpr double kBatchesBeyond = 3;
    constexpr double kCoveredMin = 0.8;
    return std::max(1 - kBatchesBeyond * (1 - attainment), std::min(attainment, kCoveredMin));
}

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
