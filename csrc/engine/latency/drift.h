// Finds out that batches take longer, or shorter, than they used to: a cumulative sum (CUSUM) of
// the log ratios to the median of their own size, in both directions. Batches that run at one time
// meet the same stall: together they count about as one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace infersched::engine {

class LatencyDrift {
  public:
    struct Sample {
        std::uint32_t rows = 0;
        std::uint8_t beside = 0;  // LatencySlowdown::Beside
        float ns = 0;
        float log_ratio = 0;
    };
    struct Change {
        std::size_t batches = 0;  // since it began, as far as they are remembered; 0: no change
        double log_shift = 0;     // the median of their log ratios
    };

    // `scale`: the usual deviation of log ratios. A change is told once.
    Change learn(const Sample& sample, double scale);
    // The sample before which `back` others came last; back < Change::batches.
    const Sample& recent(std::size_t back) const {
        return recent_[(count_ - 1 - back) % recent_.size()];
    }

    template <class Archive>
    void archive(Archive& archive) {
        for (Sample& sample : recent_) {
            archive(sample.rows);
            archive(sample.beside);
            archive(sample.ns);
            archive(sample.log_ratio);
        }
        archive(count_);
        for (Sum* sum : {&slower_, &faster_}) {
            archive(sum->value);
            archive(sum->batches);
        }
    }

  private:
    struct Sum {
        double value = 0;
        std::uint64_t batches = 0;  // since it was 0
        bool add(double z, double weight);
    };

    std::array<Sample, 16> recent_;
    std::uint64_t count_ = 0;
    Sum slower_, faster_;
};

}  // namespace infersched::engine
