#include "simulation/arrivals.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace infersched::simulation {

namespace {

// Later than any run; a sum of gaps above it would not fit Nanos.
constexpr double kEndNs = 9e18;

}  // namespace

double ArrivalPlan::mean_per_s() const {
    if (kind == ArrivalKind::kSeries) {
        const double sum = std::accumulate(rates_per_s.begin(), rates_per_s.end(), 0.0);
        return rates_per_s.empty() ? 0 : sum / static_cast<double>(rates_per_s.size());
    }
    if (kind == ArrivalKind::kRecorded) {
        const Nanos span = times_ns.empty() ? 0 : times_ns.back();
        return span <= 0 ? 0
                         : static_cast<double>(times_ns.size()) * 1e9 / static_cast<double>(span);
    }
    return rate_per_s;
}

Arrivals::Arrivals(ArrivalPlan plan, std::uint64_t seed) : plan_(std::move(plan)), random_(seed) {
    if (plan_.rate_per_s > 0) mean_gap_ns_ = 1e9 / plan_.rate_per_s;
    if (plan_.kind == ArrivalKind::kOnOff) {
        const double on = static_cast<double>(plan_.on_mean_ns);
        mean_gap_ns_ *= on / (on + static_cast<double>(plan_.off_mean_ns));
        on_left_ns_ = on * random_.exponential();
    }
}

Nanos Arrivals::next() {
    if (plan_.kind == ArrivalKind::kRecorded) {
        return index_ < plan_.times_ns.size() ? plan_.times_ns[index_++] : kNever;
    }
    if (plan_.kind == ArrivalKind::kSeries) return next_of_series();
    if (mean_gap_ns_ <= 0) return kNever;
    switch (plan_.kind) {
        case ArrivalKind::kGamma:
            at_ns_ += random_.gamma(plan_.shape) * mean_gap_ns_ / plan_.shape;
            break;
        case ArrivalKind::kOnOff:
            at_ns_ += on_off_gap();
            break;
        default:
            at_ns_ += random_.exponential() * mean_gap_ns_;
    }
    return at_ns_ < kEndNs ? static_cast<Nanos>(at_ns_) : kNever;
}

double Arrivals::on_off_gap() {
    double on_needed = random_.exponential() * mean_gap_ns_;
    double gap = 0;
    while (on_needed > on_left_ns_) {
        on_needed -= on_left_ns_;
        gap += on_left_ns_ + random_.exponential() * static_cast<double>(plan_.off_mean_ns);
        on_left_ns_ = random_.exponential() * static_cast<double>(plan_.on_mean_ns);
    }
    on_left_ns_ -= on_needed;
    return gap + on_needed;
}

Nanos Arrivals::next_of_series() {
    // A unit exponential used up at the rate of each step (time rescaling).
    double needed = random_.exponential();
    const double step = static_cast<double>(plan_.step_ns);
    while (index_ < plan_.rates_per_s.size()) {
        const double per_ns = std::max(plan_.rates_per_s[index_], 0.0) / 1e9;
        const double left = step * static_cast<double>(index_ + 1) - at_ns_;
        if (needed < per_ns * left) {
            at_ns_ += needed / per_ns;
            return static_cast<Nanos>(at_ns_);
        }
        needed -= per_ns * left;
        ++index_;
        at_ns_ = step * static_cast<double>(index_);
    }
    return kNever;
}

}  // namespace infersched::simulation
