// Rows a second, as an average that follows what is more than chance faster than chance.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/time.h"

namespace infersched::engine {

class RateMeter {
  public:
    static constexpr Nanos kTickNs = 100 * kMillisecond;

    void count(std::uint32_t rows) { rows_ += rows; }
    // At the end of every tick.
    void tick() {
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
    double per_s() const { return per_s_; }
    // By how much counts vary more than those of a Poisson process, which has 1; at least that.
    double dispersion() const { return std::max(dispersion_, 1.0); }
    // Rows that come within `ns`, and those that come almost certainly.
    double coming(double ns) const { return per_s_ * ns / static_cast<double>(kSecond); }
    double coming_surely(double ns) const {
        const double mean = coming(ns);
        return std::max(mean - kFewerDeviations * std::sqrt(mean * dispersion()), 0.0);
    }
    bool idle() const { return rows_ == 0 && per_s_ < kIdlePerS; }
    void reset() { *this = RateMeter(); }

    template <class Archive>
    void archive(Archive& archive) {
        archive(rows_);
        archive(per_s_);
        archive(dispersion_);
        archive(low_ticks_);
        archive(low_sum_);
        archive(started_);
    }

  private:
    // Whether the ticks since the average was last reached saw less than by chance.
    bool fell(double seen, double deviation) {
        low_ticks_ = seen < per_s_ ? low_ticks_ + 1 : 0;
        low_sum_ = low_ticks_ > 0 ? low_sum_ + seen : 0;
        const double missing = low_ticks_ * per_s_ - low_sum_;
        return low_ticks_ >= kLowTicks && missing > kDeviations * deviation * std::sqrt(low_ticks_);
    }

    static constexpr double kPerSecond =
        static_cast<double>(kSecond) / static_cast<double>(kTickNs);
    static constexpr double kDeviations = 4;
    static constexpr double kFewerDeviations = 3;
    static constexpr double kRise = 0.3;
    static constexpr double kFollow = 0.05;
    // A pause between two bursts is soon over; after more low ticks in a row the load is another
    // one.
    static constexpr double kFall = 0.5;
    static constexpr std::uint32_t kLowTicks = 3;
    static constexpr double kIdlePerS = 0.1;

    std::uint64_t rows_ = 0;  // in this tick
    double per_s_ = 0;
    double dispersion_ = 1;
    // Ticks in a row below the average, and what they saw.
    std::uint32_t low_ticks_ = 0;
    double low_sum_ = 0;
    bool started_ = false;
};

}  // namespace infersched::engine
