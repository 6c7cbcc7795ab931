// How large batches may be so that even their first row, which waits for the last, is in time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/latency/model.h"
#include "engine/queues/queue.h"

namespace infersched::engine {

// The largest batch up to `most`, at least 1, of which the first row is in time if it has waited
// for the last: until the rows have come, with so many deviations of their mean time, or, if that
// is sooner, for as long as the batch before it runs. `bound_ns(rows)`, which has the margin,
// belongs to the batch itself; how many executors are busy is a matter of the mean.
template <class Bound>
std::uint32_t staggered_rows(const LatencyModel& latency, const Bound& bound_ns, const Group& group,
                             double request_rows, double deviations, std::uint32_t most) {
    const auto budget = static_cast<double>(group.budget_ns);
    const double per_ns = group.rate.per_s() / 1e9;
    const auto in_time = [&](std::uint32_t rows) {
        const auto holds = static_cast<double>(latency.expected(rows));
        const double spread = deviations * std::sqrt(rows * request_rows);
        const double gathering = std::min((rows + spread) / per_ns, holds);
        return static_cast<double>(bound_ns(rows)) + gathering <= budget;
    };
    std::uint32_t low = 1;
    std::uint32_t high = most;
    while (low < high) {
        const std::uint32_t middle = low + (high - low + 1) / 2;
        if (in_time(middle)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

}  // namespace infersched::engine
