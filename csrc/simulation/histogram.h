// Durations by logarithmic buckets, 32 to a doubling: quantiles within 3 %.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"

namespace infersched::simulation {

class Histogram {
  public:
    void add(Nanos value) {
        const std::size_t at = bucket(value > 0 ? static_cast<std::uint64_t>(value) : 0);
        if (at >= counts_.size()) counts_.resize(at + 1);
        ++counts_[at];
        ++total_;
    }
    // The lower end of the bucket with that part of all values at or below it; 0 when empty.
    Nanos quantile(double part) const {
        const double wanted = part * static_cast<double>(total_);
        std::uint64_t seen = 0;
        for (std::size_t at = 0; at < counts_.size(); ++at) {
            seen += counts_[at];
            if (seen > 0 && static_cast<double>(seen) >= wanted) return lower_end(at);
        }
        return 0;
    }

  private:
    static constexpr unsigned kBits = 5;
    static constexpr std::uint64_t kPart = 1u << kBits;

    static std::size_t bucket(std::uint64_t value) {
        if (value < kPart) return value;
        const unsigned shift = 63 - kBits - static_cast<unsigned>(__builtin_clzll(value));
        return (static_cast<std::size_t>(shift + 1) << kBits) + ((value >> shift) - kPart);
    }
    static Nanos lower_end(std::size_t at) {
        if (at < kPart) return static_cast<Nanos>(at);
        const unsigned shift = static_cast<unsigned>(at >> kBits) - 1;
        return static_cast<Nanos>(((at & (kPart - 1)) + kPart) << shift);
    }

    std::vector<std::uint64_t> counts_;
    std::uint64_t total_ = 0;
};

}  // namespace infersched::simulation
