// Whether a backend still takes the time that is learned of all like it together.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace infersched::engine {

class LatencyLikeness {
  public:
    // A batch took exp(log_ratio) times what is known of the like ones, whose ratios usually
    // deviate by `scale`. The logarithm of the factor by which this backend differs; 0: it does
    // not, as far as can be told.
    double learn(double log_ratio, double scale);
    // As learn(), of one that is still learned apart: whether enough batches took the same time.
    bool same(double log_ratio);
    void forget() { count_ = 0; }

    template <class Archive>
    void archive(Archive& archive) {
        for (float& ratio : ratios_) archive(ratio);
        archive(count_);
    }

  private:
    static constexpr std::size_t kRatios = 32;
    static constexpr std::size_t kHalf = kRatios / 2;

    double jumped(double scale) const;
    double differs() const;
    double median_off(std::size_t back) const;
    void add(double log_ratio);

    std::array<float, kRatios> ratios_{};
    std::uint64_t count_ = 0;
};

}  // namespace infersched::engine
