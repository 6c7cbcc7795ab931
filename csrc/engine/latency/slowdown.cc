#include "engine/latency/slowdown.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

constexpr std::uint32_t kSettledBatches = 8;
constexpr std::uint32_t kAppliedEvery = 8;
constexpr double kWeightMin = 0.01;  // of one batch in its factor
constexpr double kNegligible = 0.03;
// Factors and times could grow against each other for ever: the factor of the number first seen is
// drawn to 1, and the others with it.
constexpr double kDraw = 1e-3;
constexpr double kLogMax = 2;

}  // namespace

bool LatencySlowdown::settled(std::uint32_t running) const {
    return reference_ == 0 || running == reference_ || loads_[running].batches >= kSettledBatches;
}

void LatencySlowdown::learn(std::uint32_t running, double log_ratio) {
    if (reference_ == 0) reference_ = running;
    others_ = others_ || running != reference_;
    Load& load = loads_[running];
    load.batches = std::min(load.batches + 1, 1u << 30);
    if (!others_) return;
    const double weight = std::max(1.0 / load.batches, kWeightMin);
    const double ratio = std::min(std::max(log_ratio, -kLogMax), kLogMax);
    load.log_factor += weight * (ratio - load.log_factor);
    const double drawn = kDraw * loads_[reference_].log_factor;
    for (Load& each : loads_) {
        if (each.batches > 0) each.log_factor -= drawn;
    }
    if (++unapplied_ >= kAppliedEvery) apply();
}

void LatencySlowdown::apply() {
    unapplied_ = 0;
    // More batches never make one faster; a number that was not seen is like the next smaller one
    // that was, below the smallest like that.
    double log_factor = -2 * kLogMax;
    std::uint32_t unseen_to = 0;
    for (std::uint32_t running = 1; running <= kRunningMax; ++running) {
        const Load& load = loads_[running];
        if (load.batches >= kSettledBatches || running == reference_) {
            const double own = std::fabs(load.log_factor) < kNegligible ? 0 : load.log_factor;
            if (own > log_factor) {
                log_factor = own;
                factors_[running] = std::exp(own);
            } else {
                factors_[running] = factors_[running - 1];
            }
            if (unseen_to == 0) {
                unseen_to = running;
                std::fill(factors_.begin() + 1, factors_.begin() + running, factors_[running]);
            }
        } else if (unseen_to != 0) {
            factors_[running] = factors_[running - 1];
        }
    }
    factors_[0] = factors_[kRunningMax];
}

}  // namespace infersched::engine
