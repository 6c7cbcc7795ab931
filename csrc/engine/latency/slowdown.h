// How much longer a batch takes while others run on the same device: a factor per number of them.
#pragma once

#include <array>
#include <cstdint>

namespace infersched::engine {

class LatencySlowdown {
  public:
    static constexpr std::uint32_t kRunningMax = 16;  // more count as so many

    LatencySlowdown() { factors_.fill(1); }

    // Held to [1, kRunningMax].
    static std::uint32_t held(std::uint32_t running) {
        return running < 1 ? 1 : running > kRunningMax ? kRunningMax : running;
    }
    // `log_ratio`: of what was measured to the median of its size, which factors were taken out of.
    void learn(std::uint32_t running, double log_ratio);
    // Whether the factor of this number means something. That of the first one seen always does.
    bool settled(std::uint32_t running) const;
    // The factor of `running` batches; 0: the largest one.
    double factor(std::uint32_t running) const { return factors_[running]; }

    template <class Archive>
    void archive(Archive& archive) {
        for (Load& load : loads_) {
            archive(load.log_factor);
            archive(load.batches);
        }
        for (double& factor : factors_) archive(factor);
        archive(reference_);
        archive(others_);
        archive(unapplied_);
    }

  private:
    struct Load {
        double log_factor = 0;
        std::uint32_t batches = 0;
    };
    void apply();

    std::array<Load, kRunningMax + 1> loads_;
    std::array<double, kRunningMax + 1> factors_;
    std::uint32_t reference_ = 0;  // the number first seen
    bool others_ = false;          // another one was seen
    std::uint32_t unapplied_ = 0;  // batches learned from since factors_ were made
};

}  // namespace infersched::engine
