#include "loadgen/histogram.h"

#include <algorithm>
#include <cmath>

namespace infersched::loadgen {

namespace {

constexpr unsigned kSubBits = 7;
constexpr std::uint64_t kSubBuckets = 1u << kSubBits;
// Values below kSubBuckets have a bucket each; every further power of two up to 2^62 has
// kSubBuckets.
constexpr std::size_t kBuckets = kSubBuckets * (63 - kSubBits + 1);

std::size_t bucket_of(std::uint64_t value) {
    if (value < kSubBuckets) return value;
    const unsigned shift = 63 - static_cast<unsigned>(__builtin_clzll(value)) - kSubBits;
    return kSubBuckets * shift + (value >> shift);
}

Nanos lower_bound(std::size_t bucket) {
    if (bucket < 2 * kSubBuckets) return static_cast<Nanos>(bucket);
    const std::size_t shift = bucket / kSubBuckets - 1;
    return static_cast<Nanos>((kSubBuckets + bucket % kSubBuckets) << shift);
}

Nanos width(std::size_t bucket) {
    return bucket < 2 * kSubBuckets ? 1 : Nanos{1} << (bucket / kSubBuckets - 1);
}

}  // namespace

Histogram::Histogram() : counts_(kBuckets) {}

void Histogram::add(Nanos value) {
    value = std::max<Nanos>(value, 0);
    ++counts_[bucket_of(static_cast<std::uint64_t>(value))];
    ++count_;
    sum_ += value;
    min_ = std::min(min_, value);
    max_ = std::max(max_, value);
}

void Histogram::clear() {
    std::fill(counts_.begin(), counts_.end(), 0);
    count_ = 0;
    sum_ = 0;
    min_ = kNever;
    max_ = 0;
}

Nanos Histogram::quantile(double q) const {
    if (count_ == 0) return 0;
    const double share = std::min(std::max(q, 0.0), 1.0);
    const auto wanted = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(count_)));
    const std::uint64_t rank = std::max<std::uint64_t>(wanted, 1);
    std::uint64_t seen = 0;
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
        seen += counts_[bucket];
        if (seen >= rank) {
            const Nanos middle = lower_bound(bucket) + width(bucket) / 2;
            return std::min(std::max(middle, min_), max_);
        }
    }
    return max_;
}

std::vector<Histogram::Bucket> Histogram::buckets() const {
    std::vector<Bucket> filled;
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
        if (counts_[bucket] == 0) continue;
        const Nanos lower = lower_bound(bucket);
        filled.push_back({lower, lower + width(bucket), counts_[bucket]});
    }
    return filled;
}

}  // namespace infersched::loadgen
