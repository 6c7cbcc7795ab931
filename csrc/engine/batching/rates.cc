#include "engine/batching/rates.h"

namespace infersched::engine {

// Whether the ticks since the average was last reached saw less than by chance.
bool RateMeter::fell(double seen, double deviation) {
    low_ticks_ = seen < per_s_ ? low_ticks_ + 1 : 0;
    low_sum_ = low_ticks_ > 0 ? low_sum_ + seen : 0;
    const double missing = low_ticks_ * per_s_ - low_sum_;
    return low_ticks_ >= kLowTicks && missing > kDeviations * deviation * std::sqrt(low_ticks_);
}

void RateMeter::tick() {
    const double seen = static_cast<double>(rows_) * kPerSecond;
    rows_ = 0;
    if (!started_) {
        per_s_ = seen;
        started_ = true;
        return;
    }
    // What the count of a Poisson process varies by must not move the average much.
    const double deviation = std::sqrt(per_s_ * kPerSecond);
    const bool rises = seen > per_s_ + kDeviations * deviation;
    // Of counts: their mean square around the mean, over the mean.
    const double mean = std::max(per_s_ / kPerSecond, 1.0);
    const double apart = (seen - per_s_) / kPerSecond;
    dispersion_ += kFollow * (apart * apart / mean - dispersion_);
    if (fell(seen, deviation)) {
        per_s_ += kFall * (low_sum_ / low_ticks_ - per_s_);
    } else {
        per_s_ += (rises ? kRise : kFollow) * (seen - per_s_);
    }
}

}  // namespace infersched::engine
