#include "engine/execution/runs_on.h"

#include <algorithm>

namespace infersched::engine {
namespace {

constexpr Nanos kTimes = 4;
constexpr Nanos kExpectedMaxNs = kSecond;

}  // namespace

Nanos runs_on_until(const ModelState& model, const PlacementState& placement, std::uint32_t rows,
                    Nanos deadline, Nanos now) {
    const LatencyModel& latency = latency_of(model, placement);
    if (!model.learns || deadline == kNever || !latency.known()) return deadline;
    const Nanos expected = latency.expected(rows);
    const Nanos budget = std::max<Nanos>(deadline - now, 0);
    if (!placement.cut && expected <= budget) return deadline;
    Nanos longer = kNever;
    if (__builtin_mul_overflow(budget, kTimes, &longer)) longer = kNever;
    const Nanos twice = std::min(add_saturating(expected, expected), kExpectedMaxNs);
    return add_saturating(now, std::max(longer, twice));
}

}  // namespace infersched::engine
