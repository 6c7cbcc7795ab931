// When requests of an open loop are meant to start: a seeded Poisson process or given offsets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"

namespace infersched::loadgen {

// SplitMix64 (Steele, Lea, Flood 2014): one multiply chain a number, any seed is good.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    // In (0, 1]: its logarithm is finite.
    double unit() { return (static_cast<double>(next() >> 11) + 1.0) * 0x1p-53; }

  private:
    std::uint64_t state_;
};

// Offsets from the beginning of the load, non-decreasing.
class Arrivals {
  public:
    // None at all.
    Arrivals() : random_(0) {}
    // Exponential gaps with the mean 1 / rate_per_s.
    static Arrivals poisson(double rate_per_s, std::uint64_t seed);
    // `offsets` ascending; kNever after the last.
    static Arrivals given(std::vector<Nanos> offsets);

    // The offset of the next request; kNever when there is none.
    Nanos peek() const { return next_; }
    void advance();

  private:
    double mean_gap_ns_ = 0;  // 0: offsets are given
    double at_ns_ = 0;        // unrounded, so that gaps do not lose their fractions
    Random random_;
    std::vector<Nanos> offsets_;
    std::size_t index_ = 0;
    Nanos next_ = kNever;
};

}  // namespace infersched::loadgen
