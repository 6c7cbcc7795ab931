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
    void tick();
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
    bool fell(double seen, double deviation);

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
