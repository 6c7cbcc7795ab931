// What batches that ran say: of their size, of the backbone, of the noise, of others beside them.
#include <algorithm>
#include <cmath>

#include "engine/latency/state.h"

namespace infersched::engine {
namespace {

constexpr std::uint64_t kKnownAfter = 3;
// Up to here every observation makes a new curve.
constexpr std::uint64_t kEagerUntil = 16;
// A batch beyond its bound makes a new curve as urgent as so many others do.
constexpr std::uint32_t kMissHaste = 64;
// Below this share of the largest size, times are often no more affine.
constexpr double kTailShare = 0.25;
// Sizes that are told apart. When there are more, one that was not seen for long makes room, and
// this is tried so often.
constexpr std::size_t kSizesMax = 512;
constexpr std::uint64_t kSizeIdle = 4096;
constexpr std::uint64_t kRoomEvery = 256;
// A size's first batches, this much longer than the backbone says, do not bend it. What the first
// batches of a model took, that much longer than a later one, is forgotten.
constexpr double kWarmUp = 4;
// What the backbone keeps of the time before a drift.
constexpr double kBackboneKept = 0.05;
// And of that before the slow-down by others was found to be another one.
constexpr double kBackboneKeptAlike = 0.5;
// Sizes whose windows are brought to another slow-down with every batch.
constexpr std::size_t kBroughtSizes = 4;

// To 24 bits, never below `ns`: what was measured exactly is not predicted too short.
float rounded_up(double ns) {
    const auto near = static_cast<float>(ns);
    return near < ns ? std::nextafter(near, 1e30f) : near;
}

}  // namespace

bool LatencyModel::State::known() const { return primed || accuracy.observations >= kKnownAfter; }

bool LatencyModel::State::young() const { return accuracy.observations <= kEagerUntil; }

LatencySizeRecord* LatencyModel::State::find(std::uint32_t rows) {
    const auto at = std::lower_bound(
        sizes.begin(), sizes.end(), rows,
        [](const LatencySizeRecord& size, std::uint32_t wanted) { return size.rows < wanted; });
    return at != sizes.end() && at->rows == rows ? &*at : nullptr;
}

bool LatencyModel::State::make_room() {
    if (sizes.size() < kSizesMax) return true;
    if (accuracy.observations - room_made_at < kRoomEvery) return false;
    room_made_at = accuracy.observations;
    const auto oldest =
        std::min_element(sizes.begin(), sizes.end(),
                         [](const LatencySizeRecord& one, const LatencySizeRecord& other) {
                             return one.last_seen < other.last_seen;
                         });
    if (accuracy.observations - oldest->last_seen < kSizeIdle) return false;
    sizes.erase(oldest);
    brought = 0;
    return true;
}

LatencySizeRecord* LatencyModel::State::find_or_make(std::uint32_t rows) {
    if (LatencySizeRecord* size = find(rows)) return size;
    if (!make_room()) return nullptr;
    const auto at = std::lower_bound(
        sizes.begin(), sizes.end(), rows,
        [](const LatencySizeRecord& size, std::uint32_t wanted) { return size.rows < wanted; });
    const auto made = sizes.insert(at, LatencySizeRecord());
    made->rows = rows;
    made->last_seen = accuracy.observations;
    made->slowdown_version = slowdown.version();
    return &*made;
}

void LatencyModel::State::prime(std::uint32_t rows, double mean_ns) {
    LatencySizeRecord* size = find_or_make(rows);
    if (size == nullptr || size->observations > 0) return;
    if (size->prior_ns == 0) backbone.learn(rows, mean_ns, tail_weight(rows));
    size->prior_ns = mean_ns;
    size->prior_drifts = 0;
    rows_measured = std::max(rows_measured, rows);
    primed = stale = true;
}

void LatencyModel::State::observe(std::uint32_t rows, Nanos ran_ns, LatencySlowdown::Beside beside,
                                  double attainment) {
    refresh(attainment);
    LatencySizeRecord* size = find_or_make(rows);
    if (known()) judge(size, rows, ran_ns, attainment);
    ++accuracy.observations;
    margin.age();
    rows_measured = std::max(rows_measured, rows);
    ++unseen;
    if (young()) stale = true;

    slowdown.count(beside);
    const auto ran = static_cast<double>(ran_ns);
    const double ns = ran / slowdown.factor(beside);
    if (young()) forget_warm_up(rows, ns);
    LatencyDrift::Change change;
    if (size != nullptr) {
        const bool paired =
            size->last_ns > 0 && slowdown.learn(ran, beside, size->last_ns, size->last_beside);
        size->last_ns = paired ? 0 : ran;
        size->last_beside = beside;
        bring(*size);
    }
    if (size != nullptr && size->backed()) {
        const double log_ratio = std::log(ns / size->window.median());
        const auto ratio = static_cast<float>(log_ratio);
        change = drift.learn({rows, beside, rounded_up(ran), ratio}, margin.scale());
    }
    add(size, rows, ns, beside);
    if (change.batches > 0) drifted(change, attainment);
    // After a drift the curve is made anew first: as long as factors change, it stays as it is.
    if (slowdown.changing() || (change.batches == 0 && slowdown.begin_change())) bring_some();
}

// Every instance has a first batch that is far longer than the next ones. With many instances those
// are most of what is known at first, and refuse what would show that they are no rule.
void LatencyModel::State::forget_warm_up(std::uint32_t rows, double ns) {
    bool forgot = false;
    for (LatencySizeRecord& size : sizes) {
        const double usual = ns * std::max(1.0, static_cast<double>(size.rows) / rows);
        if (size.window.size() == 0 || size.window.median() < kWarmUp * usual) continue;
        size.window.clear();
        size.last_ns = 0;
        forgot = true;
    }
    if (!forgot) return;
    backbone = LatencyBackbone();
    for (const LatencySizeRecord& size : sizes) {
        const double known = size.window.size() > 0 ? size.window.median() : size.prior_ns;
        if (known > 0) backbone.learn(size.rows, known, tail_weight(size.rows));
    }
}

void LatencyModel::State::bring(LatencySizeRecord& size) const {
    if (size.slowdown_version == slowdown.version()) return;
    size.slowdown_version = slowdown.version();
    size.window.change([this](double ns, LatencySlowdown::Beside beside) {
        return static_cast<float>(ns * slowdown.former(beside) / slowdown.factor(beside));
    });
}

// The curve and what is told of it stay as they are until all sizes are brought: a few with every
// batch, for all at once would take too long.
void LatencyModel::State::bring_some() {
    const std::size_t end = std::min(brought + kBroughtSizes, sizes.size());
    while (brought < end) bring(sizes[brought++]);
    if (brought == sizes.size()) end_change();
}

void LatencyModel::State::end_change() {
    brought = 0;
    const double usual = slowdown.usual();
    slowdown.end_change();
    backbone.rescale(usual / slowdown.usual(), kBackboneKeptAlike);
    stale = true;
}

// Compares what was predicted with what came.
void LatencyModel::State::judge(const LatencySizeRecord* size, std::uint32_t rows, Nanos ran_ns,
                                double attainment) {
    const double predicted = expected_ns(rows) * slowdown.usual();
    const bool beyond = ran_ns > whole_nanos(predicted * margin_factor);
    const double log_ratio = std::log(static_cast<double>(ran_ns) / predicted);
    ++accuracy.predicted;
    accuracy.beyond += beyond ? 1 : 0;
    if (size != nullptr && size->backed()) {
        margin.learn(log_ratio, beyond, attainment);
    } else if (beyond) {
        margin.widen(log_ratio - std::log(margin_factor));
    }
    if (beyond) unseen += kMissHaste;
}

double LatencyModel::State::tail_weight(std::uint32_t rows) const {
    const double share = rows / (kTailShare * std::max(rows, rows_measured));
    return std::min(1.0, share * share);
}

void LatencyModel::State::add(LatencySizeRecord* size, std::uint32_t rows, double ns,
                              LatencySlowdown::Beside beside) {
    if (size == nullptr) {
        if (ns < kWarmUp * line.at(rows)) backbone.learn(rows, ns, tail_weight(rows));
        return;
    }
    review(*size, ns);
    const bool was_backed = size->backed();
    size->window.push(rounded_up(ns), beside);
    size->last_seen = accuracy.observations;
    ++size->observations;
    const double median = size->window.median();
    if (size->backed() || backbone.empty() || stale || median < kWarmUp * line.at(rows)) {
        backbone.learn(rows, median, tail_weight(rows));
    }
    if (was_backed || !size->backed()) return;
    // The size is well known from here on. Its spread tells of the noise; the first batch of a size
    // is often longer for reasons of its own.
    stale = true;
    const std::vector<float>& values = size->window.in_order();
    for (std::size_t i = 1; i < values.size(); ++i) {
        margin.learn_spread(std::log(values[i] / median));
    }
}

// A size that is not seen goes along with those that are: by what the drift is found to be, and by
// what they are found to take after all, up to the next one. Were only the first of these two
// counted, the errors of all drifts would add up in it.
void LatencyModel::State::shift(double log_shift) {
    const double factor = std::exp(log_shift);
    prior_log_shift = shift_of_priors();
    for (LatencySizeRecord& size : sizes) {
        const bool seen = size.backed();
        const double known_ns = seen ? size.window.median() : size_ns(size, line);
        const double now_ns = (known_ns > 0 ? known_ns : expected_ns(size.rows)) * factor;
        size.prior_ns = std::min(now_ns, static_cast<double>(kLatencyRanMax));
        size.prior_drifts = seen ? 1 : size.prior_drifts + 1;
        size.window.clear();
        // With what comes now it would tell of the drift once more.
        size.last_ns = 0;
        size.slowdown_version = slowdown.version();
    }
    if (slowdown.changing()) end_change();
    prior_log_shift = 0;
    backbone.rescale(factor, kBackboneKept);
    stale = true;
}

// All sizes are taken to have changed by the same factor until they are seen again.
void LatencyModel::State::drifted(const LatencyDrift::Change& change, double attainment) {
    // The shift comes on top of what held before it: less the batches that have it.
    for (std::size_t back = 0; back < change.batches; ++back) {
        LatencySizeRecord* size = find(drift.recent(back).rows);
        if (size != nullptr) size->window.keep(LatencySizeRecord::kWindow, 1);
    }
    shift(change.log_shift);
    std::uint32_t rows_seen = 0;
    for (std::size_t back = change.batches; back-- > 0;) {
        const LatencyDrift::Sample& sample = drift.recent(back);
        rows_seen = std::max(rows_seen, sample.rows);
        const double ns = sample.ns / slowdown.factor(sample.beside);
        if (LatencySizeRecord* size = find(sample.rows)) {
            size->window.push(rounded_up(ns), sample.beside);
        }
    }
    if (change.log_shift > 0) rows_measured = rows_seen;
    margin.drifted(change.log_shift, change.batches, attainment);
    ++accuracy.drifts;
}

}  // namespace infersched::engine
