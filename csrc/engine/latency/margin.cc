#include "engine/latency/margin.h"

#include <algorithm>
#include <cmath>
#include <utility>

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
constexpr std::size_t kMeanRanks = 16;
// What of the past is kept over a drift, and when one drift is the continuation of the last.
constexpr std::size_t kKeptOverDrift = 256;
constexpr std::uint64_t kDriftsTogether = 300;
// Batches of which so many may outlast the margin and none does: by chance once in exp(10) times.
constexpr double kCalmBatches = 10;
constexpr double kCalmShareMax = 0.03;
// How far below the margin the largest of them is, as a logarithm, to be worth it.
constexpr double kCalmer = 0.05;
// When it is waited for as long as at first again.
constexpr std::uint64_t kCalmKept = 4096;
constexpr std::uint32_t kCalmTimesMax = 16;

}  // namespace

bool LatencyCalm::add(double log_ratio, double attainment) {
    largest_ = std::max(largest_, log_ratio);
    const double share = std::min(1 - attainment, kCalmShareMax);
    return ++count_ >= times_ * kCalmBatches / 2 / share;
}

void LatencyCalm::next() {
    largest_before_ = std::exchange(largest_, 0);
    count_before_ = std::exchange(count_, 0);
}

void LatencyCalm::begin() {
    next();
    largest_before_ = std::numeric_limits<double>::infinity();
}

void LatencyCalm::took(std::uint64_t aged) {
    const bool again = took_at_ != 0 && aged - took_at_ < kCalmKept;
    times_ = again ? std::min(2 * times_, kCalmTimesMax) : 1;
    took_at_ = aged;
}

void LatencyMargin::learn(double log_ratio, bool beyond, double attainment) {
    const double wanted = 1 - attainment;
    if (!started_) {
        started_ = true;
        miss_share_ = wanted;
    }
    if (log_ratio <= stalled_log()) {
        miss_share_ += kConformalStep * (wanted - (beyond ? 1.0 : 0.0));
        miss_share_ = std::min(std::max(miss_share_, kMissShareMin), 3 * wanted);
        if (calm_.add(log_ratio, attainment)) calm_down(attainment);
    }
    learn_spread(log_ratio);
}

void LatencyMargin::calm_down(double attainment) {
    const bool fewer = calm_.batches() < ratios_.size();
    if (fewer && quantile_log(attainment) > calm_.largest() + kCalmer) {
        ratios_.keep(calm_.batches(), 0);
        miss_share_ = 1 - attainment;
        calm_.took(aged_);
    }
    calm_.next();
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
    calm_.begin();
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

// The ratio that no more than `share` of the batches go beyond; 0 where there are none.
double LatencyMargin::ratio_beyond(double share) const {
    const std::size_t count = regular();
    if (count == 0) return 0;
    const double rank = std::ceil((1 - std::max(0.0, share)) * static_cast<double>(count + 1));
    return ratios_.at_rank(std::min(static_cast<std::size_t>(rank), count) - 1);
}

double LatencyMargin::quantile_log(double attainment) const {
    const double share = started_ ? miss_share_ : 1 - attainment;
    const double beyond = std::max(0.0, -share) / kConformalStep * kBeyondLargest * scale();
    return ratio_beyond(share) + beyond;
}

double LatencyMargin::log_margin_of(double attainment) const {
    return std::max(0.0, ratio_beyond(1 - attainment));
}

double LatencyMargin::log_margin(double attainment) const {
    const double cold = std::max(0.0, 1 - static_cast<double>(aged_) / kColdBatches);
    const double whole =
        std::max(0.0, quantile_log(attainment)) + kColdLog * cold * cold + widened_;
    return std::min(whole, kMarginLogMax);
}

double LatencyMargin::mean() const {
    const std::size_t count = ratios_.size();
    if (count == 0) return 0;
    double sum = 0;
    for (std::size_t i = 0; i < kMeanRanks; ++i) {
        sum += ratios_.at_rank((2 * i + 1) * count / (2 * kMeanRanks));
    }
    return sum / kMeanRanks;
}

double LatencyMargin::scale() const {
    const std::size_t count = ratios_.size();
    if (count < kScaleRatios) return kUnknownScale;
    return (ratios_.at_rank(count * 84 / 100) - ratios_.at_rank(count * 16 / 100)) / 2;
}

}  // namespace infersched::engine
