// From what is known of sizes to a curve over all of them.
//
// The points are the sizes that were observed or primed. Between two of them the curve is straight,
// outside it has the backbone's slope. Then it is raised where it would fall, or rise faster than
// in proportion to rows: batches of more rows take longer and are more efficient. Sizes that are
// well known for themselves keep their place below that proportion: there are models that pad
// batches, to powers of two say, and take twice as long for one row more. So does, the other way
// round, what was not seen since a drift: it lifts nobody further than padding would.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "engine/latency/state.h"

namespace infersched::engine {
namespace {

// Observations of a size before its median counts.
constexpr std::size_t kBacked = 5;
// A median that is so many of its standard errors above the backbone differs from it. Below it, it
// must be surer, and more so where there are fewer observations than kWellKnown.
constexpr double kDiffers = 2.5;
constexpr double kDiffersBelow = 3;
// Observations of a size that say more of it than those of its neighbours.
constexpr std::size_t kWellKnown = 16;
// A median below the backbone is believed while the size was seen among so many last observations.
constexpr std::uint64_t kFresh = 2000;
// Two observations this far below the prior refute it: nothing runs faster than it can.
constexpr double kRefuted = 0.7;
// A size that is not trusted takes at the most its part of what a smaller one does and so much of
// that more, as padding may have it. Half of it goes with each drift after the first, for that is
// where errors come from, and with so many observations of others: what is thought to be too slow
// for every deadline is not run to show that it is not.
constexpr double kUnseenSteeper = 1;
constexpr double kSteeperHalved = 1024;
// For each of its last observations the time of a size stands against those of others for so many
// of theirs.
constexpr std::uint64_t kBelievedFor = 32;
// Drifts after which what was measured before them says nothing of how much they were.
constexpr std::uint32_t kPriorDriftsMax = 32;
// Observations are rounded to 24 bits, and the backbone has a little of its first guess.
constexpr double kRounding = 1 + 1e-5;
constexpr std::uint32_t kCurveMin = 32;
constexpr double kUnknown = std::numeric_limits<double>::infinity();
constexpr std::size_t kPatienceMin = 4;

// Of the median of `window` (of normal values), relative to it.
double relative_error(const SortedWindow& window) {
    const std::size_t count = window.size();
    const double quartiles = window.at_rank(count * 3 / 4) - window.at_rank(count / 4);
    return 1.2533 * quartiles / 1.349 / std::sqrt(static_cast<double>(count)) / window.median();
}

}  // namespace

bool LatencySizeRecord::backed() const { return window.size() >= kBacked; }

bool LatencySizeRecord::trusted(std::uint64_t observed) const {
    return backed() && observed - confirmed_at <= kBelievedFor * window.size();
}

double LatencySizeRecord::steepness(std::uint64_t observed) const {
    const auto unseen = static_cast<double>(observed - confirmed_at);
    const auto believed = static_cast<double>(kBelievedFor * window.size());
    const double drifts = std::max(prior_drifts, 1u) - 1;
    const double halved = drifts + std::max(unseen - believed, 0.0) / kSteeperHalved;
    return 1 + kUnseenSteeper * std::exp2(-halved);
}

double LatencyModel::State::size_ns(const LatencySizeRecord& size,
                                    const LatencyBackbone::Line& fit) const {
    const std::size_t count = size.window.size();
    if (count < kBacked) {
        if (size.prior_ns == 0) return 0;
        const double prior = size.prior_ns * std::exp(prior_log_shift);
        if (count == 0) return prior;
        const double median = size.window.median();
        if (count >= 2 && median < kRefuted * prior) return median;
        const double seen = static_cast<double>(count) / kBacked;
        return prior * std::pow(median / prior, seen);
    }
    const double median = size.window.median();
    if (!size.trusted(accuracy.observations)) {
        const bool measured = size.prior_ns > 0 && size.prior_drifts <= 1;
        return measured ? std::min(median, size.prior_ns * std::exp(prior_log_shift)) : median;
    }
    const double fitted = fit.at(size.rows) * kRounding;
    const double error = relative_error(size.window) * median;
    if (median >= fitted) return median - fitted > kDiffers * error ? median : fitted;
    const bool fresh = accuracy.observations - size.last_seen < kFresh;
    const double doubt =
        std::max(1.0, static_cast<double>(kWellKnown) / static_cast<double>(count));
    return fresh && fitted - median > doubt * kDiffersBelow * error ? median : fitted;
}

// Before a batch of a size is counted. What was not so for long, and is not so any more, is no more
// than a prior, or most of a window would have to be seen again before it changed anything.
void LatencyModel::State::review(LatencySizeRecord& size, double ns) {
    if (!size.backed() || ns >= kRefuted * size.window.median()) {
        size.confirmed_at = accuracy.observations;
    } else if (!size.trusted(accuracy.observations)) {
        size.prior_ns = size_ns(size, line) * std::exp(-prior_log_shift);
        size.prior_drifts = 1;
        size.window.clear();
        stale = true;
    }
}

void LatencyModel::State::refresh(double attainment) {
    // A long curve is made anew less often: its cost stays a fraction of what observing costs.
    const std::size_t patience = std::max({kPatienceMin, sizes.size() / 4, curve_ns.size() / 16});
    if (slowdown.changing()) return;
    if (stale || unseen >= patience) make_curve(attainment);
}

// By those that were seen lately, and whose priors are of late.
double LatencyModel::State::shift_of_priors() const {
    double weights = 0;
    double sum = 0;
    for (const LatencySizeRecord& size : sizes) {
        if (size.prior_ns == 0 || !size.backed()) continue;
        const std::uint32_t drifts = std::min(size.prior_drifts, kPriorDriftsMax);
        const auto idle = static_cast<double>(accuracy.observations - size.last_seen);
        const double late = 1 + idle / LatencySizeRecord::kWindow;
        const double weight =
            std::ldexp(static_cast<double>(size.window.size()) / late, -static_cast<int>(drifts));
        weights += weight;
        sum += weight * std::log(size.window.median() / size.prior_ns);
    }
    return weights > 0 ? sum / weights : 0;
}

void LatencyModel::State::make_curve(double attainment) {
    stale = false;
    unseen = 0;
    margin_factor = std::exp(margin.log_margin(attainment));
    line = backbone.line();
    prior_log_shift = shift_of_priors();
    const std::uint32_t known_to = std::max(rows_measured, sizes.empty() ? 0 : sizes.back().rows);
    const std::uint32_t rows_wanted = std::max(known_to + known_to / 4, kCurveMin);
    curve_ns.assign(std::min(rows_wanted, kLatencyRowsMax) + 1, 0);
    place_sizes();
    join_sizes();
    raise_curve();
}

// The points of the curve; 0 where there is none. What was not seen since a drift, or for long, is
// held to what was; where nothing was, to what was seen before it. A size that was only ever seen
// in bad times would not be run again, and keep larger ones from being tried, for ever.
void LatencyModel::State::place_sizes() {
    const auto end = std::find_if(sizes.begin(), sizes.end(), [this](const auto& size) {
        return size.rows >= curve_ns.size();
    });
    const std::uint64_t now = accuracy.observations;
    const bool any =
        std::any_of(sizes.begin(), end, [now](const auto& size) { return size.trusted(now); });
    const auto trusted = [any, now](const LatencySizeRecord& size) {
        return size.trusted(now) || (!any && (size.backed() || size.prior_drifts <= 1));
    };
    double row_ns = kUnknown;
    for (auto size = sizes.begin(); size != end; ++size) {
        double& ns = curve_ns[size->rows];
        ns = size_ns(*size, line);
        if (ns == 0) continue;
        if (trusted(*size)) {
            row_ns = std::min(row_ns, ns / size->rows);
        } else if (size->prior_drifts > 0 || size->backed()) {
            ns = std::min(ns, size->steepness(now) * row_ns * size->rows);
        }
    }
    double larger_ns = kUnknown;
    for (auto size = std::make_reverse_iterator(end); size != sizes.rend(); ++size) {
        double& ns = curve_ns[size->rows];
        if (ns == 0) continue;
        if (trusted(*size)) {
            larger_ns = std::min(larger_ns, ns);
        } else if (size->prior_drifts > 0 || size->backed()) {
            ns = std::min(ns, larger_ns);
        }
    }
}

// Straight lines from point to point, and on with the slope of the backbone.
void LatencyModel::State::join_sizes() {
    const auto rows_top = static_cast<std::uint32_t>(curve_ns.size() - 1);
    std::uint32_t left = 0;  // the curve is done up to here
    double left_ns = 0;
    for (const LatencySizeRecord& size : sizes) {
        if (size.rows > rows_top) break;
        const double ns = curve_ns[size.rows];
        if (ns == 0) continue;
        double slope = 0;
        if (left == 0) {
            slope = std::min(line.alpha_ns, ns / size.rows);
            left_ns = ns - slope * size.rows;
        } else {
            slope = (ns - left_ns) / (size.rows - left);
        }
        for (std::uint32_t b = left + 1; b < size.rows; ++b) {
            curve_ns[b] = (left_ns + slope * (b - left)) * kRounding;
        }
        left = size.rows;
        left_ns = ns;
    }
    tail_ns = line.alpha_ns;
    if (left == 0) {
        left_ns = line.beta_ns * kRounding;
    } else {
        tail_ns = std::min(tail_ns, left_ns / left);
    }
    const double tail_slope = tail_ns * kRounding;
    for (std::uint32_t b = left + 1; b <= rows_top; ++b) {
        curve_ns[b] = left_ns + tail_slope * (b - left);
    }
}

void LatencyModel::State::raise_curve() {
    const auto rows_top = static_cast<std::uint32_t>(curve_ns.size() - 1);
    for (std::uint32_t b = 1; b <= rows_top; ++b) {
        curve_ns[b] = std::max(curve_ns[b], curve_ns[b - 1]);
    }
    auto known = sizes.rbegin();
    for (std::uint32_t b = rows_top - 1; b >= 1; --b) {
        while (known != sizes.rend() && known->rows > b) ++known;
        const bool own = known != sizes.rend() && known->rows == b;
        if (own && known->window.size() >= kWellKnown) continue;
        curve_ns[b] = std::max(curve_ns[b], curve_ns[b + 1] * b / (b + 1));
    }
}

double LatencyModel::State::expected_ns(std::uint32_t rows) const {
    const std::size_t top = curve_ns.size() - 1;
    if (rows <= top) return curve_ns[rows];
    return curve_ns[top] + tail_ns * static_cast<double>(rows - top);
}

bool LatencyModel::slope_known() const {
    if (!state_) return false;
    const auto told = [](const auto& size) { return size.backed() || size.prior_ns > 0; };
    const auto end = state_->sizes.end();
    const auto first = std::find_if(state_->sizes.begin(), end, told);
    return first != end && std::any_of(first + 1, end, told);
}

}  // namespace infersched::engine
