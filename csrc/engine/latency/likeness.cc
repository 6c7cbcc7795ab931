#include "engine/latency/likeness.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

// So many batches in a row, all of them this far off on one side, are a jump.
constexpr std::size_t kJumpBatches = 4;
constexpr double kJumpMin = 0.25;
constexpr double kJumpDeviations = 3;
// A median that is so many of its standard errors off is another one; one that is off by less than
// kAlike is not worth learning apart.
constexpr double kDeviations = 3.5;
constexpr double kAlike = 0.05;

}  // namespace

void LatencyLikeness::add(double log_ratio) {
    ratios_[count_ % kRatios] = static_cast<float>(log_ratio);
    ++count_;
}

bool LatencyLikeness::same(double log_ratio) {
    add(log_ratio);
    if (count_ < kJumpBatches) return false;
    std::size_t near = 0;
    for (std::size_t back = 1; back <= kJumpBatches; ++back)
        near += std::fabs(ratios_[(count_ - back) % kRatios]) < kJumpMin ? 1 : 0;
    return near + 1 >= kJumpBatches;
}

double LatencyLikeness::learn(double log_ratio, double scale) {
    add(log_ratio);
    const double jump = jumped(scale);
    return jump != 0 ? jump : differs();
}

double LatencyLikeness::jumped(double scale) const {
    if (count_ < kJumpBatches) return 0;
    const double far = std::max(kJumpMin, kJumpDeviations * scale);
    double sum = 0;
    bool slower = true;
    bool faster = true;
    for (std::size_t back = 1; back <= kJumpBatches; ++back) {
        const double ratio = ratios_[(count_ - back) % kRatios];
        sum += ratio;
        slower = slower && ratio > far;
        faster = faster && ratio < -far;
    }
    return slower || faster ? sum / kJumpBatches : 0;
}

// By their own spread, not by that of the others: where two kinds were taken for one, theirs is as
// wide as the difference. The older half must say the same as the newer one, or chance would tell
// every backend apart sooner or later.
double LatencyLikeness::differs() const {
    if (count_ < kRatios) return 0;
    const double newer = median_off(0);
    const double older = newer == 0 ? 0 : median_off(kHalf);
    return newer * older > 0 ? (newer + older) / 2 : 0;
}

// The median of kHalf ratios, `back` before the last; 0 when it may be chance.
double LatencyLikeness::median_off(std::size_t back) const {
    std::array<float, kHalf> sorted{};
    for (std::size_t i = 0; i < kHalf; ++i) sorted[i] = ratios_[(count_ - back - i - 1) % kRatios];
    std::sort(sorted.begin(), sorted.end());
    const double median = (sorted[kHalf / 2 - 1] + sorted[kHalf / 2]) / 2;
    const double spread = (sorted[kHalf - 3] - sorted[2]) / 2;
    const double error = 1.2533 * spread / std::sqrt(static_cast<double>(kHalf));
    return std::fabs(median) > std::max(kAlike, kDeviations * error) ? median : 0;
}

}  // namespace infersched::engine
