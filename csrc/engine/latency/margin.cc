#include "engine/latency/margin.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

// How far one batch moves the quantile, as a share of all batches.
constexpr double kConformalStep = 0.0015;
constexpr double kMissShareMin = -0.05;
// Per step that the share lies below 0: so many deviations more than the largest ratio seen.
constexpr double kBeyondLargest = 0.25;
// A model that nothing was seen of gets exp(kColdLog); it is gone after kColdBatches.
constexpr double kColdLog = 0.25;
constexpr double kColdBatches = 64;
constexpr double kWidenedKept = 0.92;
constexpr double kWidenedMax = 0.4;
constexpr double kWidenedGone = 1e-4;
// Beyond so many times more or less than predicted, a time is as good as unforeseeable: how far
// beyond says nothing of the next one.
constexpr double kRatioLogMax = 7;
constexpr double kMarginLogMax = 8;
// From so far beyond the prediction on, and so many deviations, a batch was stalled.
constexpr double kStalledLog = 1.5;
constexpr double kStalledDeviations = 5;
// Where more than one batch in so many is, that is how the model is; of few ratios, half.
constexpr std::size_t kStalledEvery = 6;
constexpr std::size_t kStalledFew = 8;
constexpr double kUnknownScale = 0.1;
constexpr std::size_t kScaleRatios = 16;
// What of the past is kept over a drift, and when one drift is the continuation of the last.
constexpr std::size_t kKeptOverDrift = 256;
constexpr std::uint64_t kDriftsTogether = 300;

}  // namespace

void LatencyMargin::learn(double log_ratio, bool beyond, double attainment) {
    const double wanted = 1 - attainment;
    if (!started_) {
        started_ = true;
        miss_share_ = wanted;
    }
    if (log_ratio <= stalled_log()) {
        miss_share_ += kConformalStep * (wanted - (beyond ? 1.0 : 0.0));
        miss_share_ = std::min(std::max(miss_share_, kMissShareMin), 3 * wanted);
    }
    learn_spread(log_ratio);
}

void LatencyMargin::learn_spread(double log_ratio) {
    const double held = std::min(std::max(log_ratio, -kRatioLogMax), kRatioLogMax);
    ratios_.push(static_cast<float>(held));
}

void LatencyMargin::age() {
    ++aged_;
    widened_ *= kWidenedKept;
    if (widened_ < kWidenedGone) widened_ = 0;
}

void LatencyMargin::widen(double log_excess) {
    widened_ = std::min(widened_ + std::max(0.0, log_excess), kWidenedMax);
}

void LatencyMargin::drifted(double log_shift, std::size_t batches, double attainment) {
    // A drift that stands alone says nothing of the noise. Where one follows the other they are the
    // noise (somebody else's work on the device), and their ratios stay.
    const bool alone = drifted_at_ == 0 || aged_ - drifted_at_ > kDriftsTogether;
    ratios_.keep(kKeptOverDrift, alone ? batches : 0);
    drifted_at_ = aged_;
    miss_share_ = 1 - attainment;
    widened_ = 0;
    widen(std::max(0.0, log_shift) / 4 + scale());
}

double LatencyMargin::stalled_log() const {
    return std::max(kStalledLog, kStalledDeviations * scale());
}

// Of the ratios, those of batches that were not stalled.
std::size_t LatencyMargin::regular() const {
    const std::vector<float>& ratios = ratios_.values();
    const auto stalled =
        std::upper_bound(ratios.begin(), ratios.end(), static_cast<float>(stalled_log()));
    const auto count = static_cast<std::size_t>(stalled - ratios.begin());
    const std::size_t few = std::min(ratios.size() / 2, kStalledFew);
    const std::size_t most = std::max(ratios.size() / kStalledEvery, few);
    return ratios.size() - count > most ? ratios.size() : count;
}

double LatencyMargin::log_margin(double attainment) const {
    double log_margin = 0;
    const std::size_t count = regular();
    if (count > 0) {
        const double share = started_ ? miss_share_ : 1 - attainment;
        const double rank = std::ceil((1 - std::max(0.0, share)) * static_cast<double>(count + 1));
        const auto index = std::min(static_cast<std::size_t>(rank), count) - 1;
        log_margin = ratios_.at_rank(index);
        if (share < 0) log_margin += -share / kConformalStep * kBeyondLargest * scale();
    }
    const double cold = std::max(0.0, 1 - static_cast<double>(aged_) / kColdBatches);
    const double whole = std::max(0.0, log_margin) + kColdLog * cold * cold + widened_;
    return std::min(whole, kMarginLogMax);
}

double LatencyMargin::scale() const {
    const std::size_t count = ratios_.size();
    if (count < kScaleRatios) return kUnknownScale;
    return (ratios_.at_rank(count * 84 / 100) - ratios_.at_rank(count * 16 / 100)) / 2;
}

}  // namespace infersched::engine
