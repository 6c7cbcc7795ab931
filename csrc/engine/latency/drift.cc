#include "engine/latency/drift.h"

#include <algorithm>
#include <cmath>

#include "engine/latency/slowdown.h"

namespace infersched::engine {
namespace {

constexpr double kScaleMin = 0.01;
// In deviations. One batch counts no more than kBatchMax: an alarm takes four. Noise that is about
// normal gives no false one in the life of a server.
constexpr double kBatchMax = 4;
constexpr double kAllowance = 1;
constexpr double kAlarm = 11;
// So many at the most count as one: an alarm must come before half a size's window is of the new
// speed, and a stall that sixteen meet is still none.
constexpr double kTogetherMax = 6;

}  // namespace

bool LatencyDrift::Sum::add(double z, double weight) {
    value = std::max(0.0, value + weight * (std::min(z, kBatchMax) - kAllowance));
    batches = value > 0 ? batches + 1 : 0;
    return value > kAlarm;
}

LatencyDrift::Change LatencyDrift::learn(const Sample& sample, double scale) {
    recent_[count_ % recent_.size()] = sample;
    ++count_;
    const double z = sample.log_ratio / std::max(scale, kScaleMin);
    const double weight = 1 / std::min(LatencySlowdown::running(sample.beside), kTogetherMax);
    const bool slower = slower_.add(z, weight);
    const bool faster = faster_.add(-z, weight);
    if (!slower && !faster) return {};
    Change change;
    const std::uint64_t began = slower ? slower_.batches : faster_.batches;
    change.batches = static_cast<std::size_t>(std::min<std::uint64_t>(began, recent_.size()));
    std::array<float, 16> ratios{};
    for (std::size_t i = 0; i < change.batches; ++i) ratios[i] = recent(i).log_ratio;
    const auto middle = ratios.begin() + static_cast<std::ptrdiff_t>((change.batches - 1) / 2);
    std::nth_element(ratios.begin(), middle,
                     ratios.begin() + static_cast<std::ptrdiff_t>(change.batches));
    change.log_shift = *middle;
    slower_ = faster_ = Sum();
    return change;
}

}  // namespace infersched::engine
