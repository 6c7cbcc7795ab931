// Latencies counted in logarithmic buckets, as in HdrHistogram: constant memory, constant time, and
// an error below 0.4 % of the value (128 buckets a power of two, quantiles answered at the bucket's
// middle).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"

namespace infersched::loadgen {

class Histogram {
  public:
    Histogram();

    // Negative values count as zero.
    void add(Nanos value);
    void clear();

    std::uint64_t count() const { return count_; }
    Nanos sum() const { return sum_; }
    Nanos min() const { return count_ ? min_ : 0; }
    Nanos max() const { return max_; }
    // The smallest recorded value (to the bucket's precision) that at least a share `q` of all
    // values does not exceed; 0 when empty.
    Nanos quantile(double q) const;

    // Non-empty buckets, ascending.
    struct Bucket {
        Nanos lower;  // inclusive
        Nanos upper;  // exclusive
        std::uint64_t count;
    };
    std::vector<Bucket> buckets() const;

  private:
    std::vector<std::uint64_t> counts_;
    std::uint64_t count_ = 0;
    Nanos sum_ = 0;
    Nanos min_ = kNever;
    Nanos max_ = 0;
};

}  // namespace infersched::loadgen
