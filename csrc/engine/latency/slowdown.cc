#include "engine/latency/slowdown.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

constexpr std::uint32_t kSixteenths = 16;
// Pairs that differ by less, in sixteenths, tell too little.
constexpr int kApartMin = 4;
constexpr double kPairsMin = 3;
constexpr std::uint32_t kTakenEvery = 4;
// Of one pair in what is learned: the first ones count alike, none less than this. How far off a
// pair is counts up to kErrorMax: stalls say no more.
constexpr double kGainMin = 1.0 / 48;
constexpr double kErrorMax = 0.5;
constexpr double kPairsMax = 1e6;
// What is learned, less so many of its standard errors, is sure. Of the first kUnsurePairs even
// more of them: few pairs say as little of the noise.
constexpr double kDeviations = 2.5;
constexpr double kUnsurePairs = 4;
// Of normal noise, a deviation over the mean size of an error.
constexpr double kDeviation = 1.25;
// When the mean over the last few pairs is so many of its deviations off, older ones count no more.
constexpr double kLatelyGain = 1.0 / 8;
constexpr double kAlarm = 4;
constexpr double kAlarmPairs = 8;
constexpr double kShareGain = 1.0 / 64;
constexpr double kSpeedMin = 1.0 / 32;
constexpr double kSpeedMax = 4;
// Factors are worth to be changed from this part on.
constexpr double kWorth = 0.02;

double gain_of(double pairs) { return std::max(1 / std::max(pairs, 1.0), kGainMin); }

// The part that the speed of `running` batches has in that of a batch beside so many.
double part_of(std::uint32_t running, std::uint32_t beside) {
    const int apart = static_cast<int>(beside) - static_cast<int>((running - 1) * kSixteenths);
    return std::max(1 - std::abs(apart) / static_cast<double>(kSixteenths), 0.0);
}

}  // namespace

LatencySlowdown::LatencySlowdown() {
    learned_.fill(1);
    current_.fill(1);
    former_.fill(1);
    shares_[1] = 1;
}

LatencySlowdown::Beside LatencySlowdown::beside(double running) {
    // Also of what is no number.
    const double others = running > 1 ? std::min<double>(running, kRunningMax) - 1 : 0;
    return static_cast<Beside>(std::lround(others * kSixteenths));
}

double LatencySlowdown::running(Beside beside) {
    return 1 + beside / static_cast<double>(kSixteenths);
}

double LatencySlowdown::speed(const Speeds& speeds, Beside beside) {
    const std::uint32_t running = 1 + beside / kSixteenths;
    const double part = beside % kSixteenths / static_cast<double>(kSixteenths);
    return speeds[running] + part * (speeds[running + 1] - speeds[running]);
}

void LatencySlowdown::count(Beside beside) {
    shared_ = shared_ || beside > 0;
    if (!shared_) return;
    const std::uint32_t running = 1 + beside / kSixteenths;
    for (double& share : shares_) share -= kShareGain * share;
    shares_[running] += kShareGain * part_of(running, beside);
    shares_[running + 1] += kShareGain * part_of(running + 1, beside);
    find_usual();
}

void LatencySlowdown::find_usual() {
    usual_ = 1;
    for (std::uint32_t running = 2; running <= kRunningMax; ++running) {
        usual_ += shares_[running] * (1 / former_[running] - 1);
    }
}

bool LatencySlowdown::learn(double ns, Beside beside, double other_ns, Beside other_beside) {
    if (beside < other_beside) {
        std::swap(ns, other_ns);
        std::swap(beside, other_beside);
    }
    if (beside - other_beside < kApartMin) return false;
    const double expected = speed(learned_, other_beside) / speed(learned_, beside);
    const double off = std::log(ns / (other_ns * expected));
    const double error = std::min(std::max(off, -kErrorMax), kErrorMax);
    all_pairs_ = std::min(all_pairs_ + 1, kPairsMax);
    error_ += gain_of(all_pairs_) * (std::fabs(error) - error_);
    const double against = variance_beside(other_beside);
    const std::uint32_t first = 1 + beside / kSixteenths;
    for (std::uint32_t running = std::max(first, 2u); running <= first + 1; ++running) {
        // Only by what is more of it than with the other one.
        const double part = part_of(running, beside) - part_of(running, other_beside);
        if (part > 0) move(running, part, error, against);
    }
    ++untaken_;
    return true;
}

void LatencySlowdown::move(std::uint32_t running, double part, double error, double against) {
    double& pairs = pairs_[running];
    pairs = std::min(pairs + part * part, kPairsMax);
    const double gain = gain_of(pairs);
    const double now = learned_[running] * std::exp(-part * gain * error);
    learned_[running] = std::min(std::max(now, kSpeedMin), kSpeedMax);
    for (std::uint32_t more = running + 1; more < pairs_.size() && pairs_[more] == 0; ++more) {
        learned_[more] = learned_[running];
    }
    against_[running] += part * gain * (against - against_[running]);
    // Where the last ones are all off to one side, it is another one now.
    double& lately = lately_[running];
    lately += part * kLatelyGain * (error - lately);
    const double deviation = kDeviation * error_ * std::sqrt(kLatelyGain / 2);
    if (std::fabs(lately) < kAlarm * deviation) return;
    pairs = std::min(pairs, kAlarmPairs);
    lately = 0;
}

// Of what is learned, as a logarithm.
double LatencySlowdown::variance(std::uint32_t running) const {
    if (running <= 1) return 0;
    const double deviation = kDeviation * error_;
    return deviation * deviation * gain_of(pairs_[running]) / 2 + against_[running];
}

double LatencySlowdown::variance_beside(Beside beside) const {
    const std::uint32_t running = 1 + beside / kSixteenths;
    const double part = beside % kSixteenths / static_cast<double>(kSixteenths);
    const double less = variance(running);
    return part == 0 ? less : less + part * (variance(running + 1) - less);
}

double LatencySlowdown::sure_log_factor(std::uint32_t running) const {
    const double pairs = pairs_[running];
    if (pairs < kPairsMin) return 0;
    const double deviations = kDeviations * (1 + kUnsurePairs / pairs);
    return -std::log(learned_[running]) - deviations * std::sqrt(variance(running));
}

bool LatencySlowdown::begin_change() {
    if (changing_ || untaken_ < kTakenEvery) return false;
    untaken_ = 0;
    // More batches never make one faster. A number that is not known is like the next smaller one.
    Speeds next = current_;
    double log_factor = 0;
    for (std::uint32_t running = 2; running < next.size(); ++running) {
        log_factor = std::max(log_factor, sure_log_factor(running));
        next[running] = std::exp(-log_factor);
        changing_ = changing_ || std::fabs(next[running] / current_[running] - 1) > kWorth;
    }
    if (!changing_) return false;
    current_ = next;
    ++version_;
    return true;
}

void LatencySlowdown::end_change() {
    changing_ = false;
    former_ = current_;
    find_usual();
}

}  // namespace infersched::engine
