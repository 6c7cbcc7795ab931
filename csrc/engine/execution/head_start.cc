#include "engine/execution/head_start.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

// Where anything is known to be of use, one batch in so many is sent earlier, and one when an
// instance is free. More are sent earlier as long as they show that more is of use; where nothing
// is, ever fewer.
constexpr std::uint32_t kProbeEvery = 32;
constexpr std::uint32_t kTrialEveryRising = 8;
constexpr std::uint32_t kTrialEveryMax = 1024;
// Trials after which the next ones are fewer, and go further.
constexpr std::uint32_t kUnclearMax = 16;
// How far trials go beyond what is known; and where most came too late to wait for their instance,
// beyond themselves.
constexpr double kTrialTimes = 1.5;
constexpr double kFurther = 2;
constexpr double kWaitedShare = 0.75;
// A trial that leaves with less than so much of its time left would tell of another one.
constexpr double kInTimeShare = 0.5;
// From here on a start is a trial, and down to there it is the usual one.
constexpr double kTrialFrom = 1.1;
constexpr double kUsualFrom = 0.8;
// Of what a batch takes: what is committed earlier cannot be joined any more.
constexpr Nanos kBatchShare = 4;
// What is worth it, and is no chance.
constexpr double kLeastNs = 100e3;
constexpr double kLeastShare = 1.0 / 16;
constexpr double kDeviations = 3;
// Of a kind, before anything is concluded.
constexpr std::uint32_t kValuesMin = 8;
// A stall counts as so much of what is expected; a start that was earlier was before one.
constexpr double kValueShare = 0.5;

double part_of(double value, Nanos expected_ns) {
    const double most = kValueShare * static_cast<double>(expected_ns);
    return std::clamp(value, -most, most);
}

}  // namespace

void RecentMean::add(double value) {
    count_ = std::min(count_ + 1, memory_);
    const double gain = 1.0 / count_;
    const double off = value - mean_;
    mean_ += gain * off;
    variance_ += gain * (off * (value - mean_) - variance_);
}

double RecentMean::error_squared() const { return count_ < 2 ? 0 : variance_ / (count_ - 1); }

Nanos HeadStart::usual_ns(Nanos batch_ns) const {
    return std::min(known_ns_, batch_ns / kBatchShare);
}

Nanos HeadStart::trial_ns(Nanos batch_ns) const {
    return since_trial_ < trial_every_ ? 0 : std::min(trial_ns_, batch_ns / kBatchShare);
}

bool HeadStart::in_time(Nanos trial_ns, Nanos early_ns) {
    return static_cast<double>(early_ns) >= kInTimeShare * static_cast<double>(trial_ns);
}

bool HeadStart::late_due() const { return since_late_ >= kProbeEvery; }

void HeadStart::sent() {
    ++since_trial_;
    since_late_ = 0;
}

void HeadStart::sent_early(Nanos early_ns) {
    const auto early = static_cast<double>(early_ns);
    const bool trial = early > kTrialFrom * static_cast<double>(known_ns_);
    since_trial_ = trial ? 0 : since_trial_ + 1;
    ++since_late_;
}

void HeadStart::ran(Nanos expected_ns, Nanos ran_ns) {
    late_.add(part_of(static_cast<double>(ran_ns - expected_ns), expected_ns));
}

void HeadStart::ran_early(Nanos expected_ns, Nanos ran_ns, Nanos early_ns) {
    const auto early = static_cast<double>(early_ns);
    const auto known = static_cast<double>(known_ns_);
    const bool trial = early > kTrialFrom * known;
    if (!trial && early < kUsualFrom * known) return;
    // The one before it stalled: this tells of that.
    if (early > kValueShare * static_cast<double>(expected_ns)) return;
    Early& by = trial ? trials_ : usual_;
    by.saved.add(part_of(static_cast<double>(expected_ns - ran_ns), expected_ns));
    by.early.add(early);
    if (by.saved.count() < kValuesMin || late_.count() < kValuesMin) return;
    const double least_ns = std::max(kLeastNs, kLeastShare * static_cast<double>(expected_ns));
    trial ? judge_trials(least_ns) : judge_usual(least_ns);
}

// What is expected may be off itself: what was sent early and what was not are, by the same.
double HeadStart::error_ns(const Early& by) const {
    return kDeviations * std::sqrt(by.saved.error_squared() + late_.error_squared());
}

// Batches that wait for their instance although they are sent no earlier than was of use: it is
// less now.
void HeadStart::judge_usual(double least_ns) {
    const double saved = saved_ns(usual_);
    if (saved + error_ns(usual_) > kUsualFrom * usual_.early.mean()) return;
    know(saved < least_ns ? 0 : saved);
}

void HeadStart::judge_trials(double least_ns) {
    const double saved = saved_ns(trials_);
    const double error = error_ns(trials_);
    const double early = trials_.early.mean();
    if (saved >= std::max(kLeastNs, error) && saved > kWaitedShare * early) {
        // Most did not wait: there is more to it.
        know(saved < least_ns ? 0 : saved);
        trial_ns_ = static_cast<Nanos>(kFurther * early);
        trial_every_ = kTrialEveryRising;
    } else if (saved >= std::max(least_ns, error)) {
        trial_every_ = kProbeEvery;
        known_ns_ = static_cast<Nanos>(saved);
        trial_ns_ = static_cast<Nanos>(kTrialTimes * saved);
    } else if (saved + error < std::min(least_ns, kWaitedShare * early)) {
        know(0);
        trial_every_ = kTrialEveryMax;
    } else if (++unclear_ >= kUnclearMax) {
        unclear_ = 0;
        trial_every_ = std::min(2 * trial_every_, kTrialEveryMax);
        trial_ns_ = static_cast<Nanos>(kFurther * early);
    }
}

// From here on starts are other ones.
void HeadStart::know(double early_ns) {
    known_ns_ = static_cast<Nanos>(early_ns);
    trial_ns_ = std::max(static_cast<Nanos>(kTrialTimes * early_ns), kMillisecond / 2);
    usual_ = trials_ = Early();
    unclear_ = 0;
}

}  // namespace infersched::engine
