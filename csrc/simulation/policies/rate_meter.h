// Arrivals a second of one model, as an average that follows a rise faster than a fall.
#pragma once

#include <cmath>
#include <cstdint>

#include "base/time.h"

namespace infersched::simulation {

class RateMeter {
  public:
    static constexpr Nanos kTickNs = 100 * kMillisecond;

    void count() { ++arrivals_; }
    // At the end of every tick.
    void tick() {
        const double seen = static_cast<double>(arrivals_) * 1e9 / static_cast<double>(kTickNs);
        arrivals_ = 0;
        if (!started_) {
            per_s_ = seen;
            started_ = true;
            return;
        }
        const double deviation = std::sqrt(per_s_ * 1e9 / static_cast<double>(kTickNs));
        const bool rises = seen > per_s_ + kRiseDeviations * deviation;
        per_s_ += (rises ? kRise : kFollow) * (seen - per_s_);
    }
    double per_s() const { return per_s_; }

  private:
    // A rise is one beyond what the count of a Poisson process of this rate varies by: following
    // every larger count faster than a smaller one would overrate a steady load.
    static constexpr double kRiseDeviations = 4;
    static constexpr double kRise = 0.3;
    static constexpr double kFollow = 0.05;

    std::uint64_t arrivals_ = 0;
    double per_s_ = 0;
    bool started_ = false;
};

}  // namespace infersched::simulation
