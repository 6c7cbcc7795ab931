#include "engine/latency/model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/archive.h"
#include "engine/latency/state.h"

namespace infersched::engine {
namespace {

constexpr Nanos kRanMax = 3600 * kSecond;
constexpr double kAttainmentMin = 0.5;
constexpr double kAttainmentMax = 0.9999;
constexpr std::uint32_t kRowsMax = 1u << 24;
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
// A size's first batches, this much longer than the backbone says, do not bend it.
constexpr double kWarmUp = 4;
// What the backbone keeps of the time before a drift.
constexpr double kBackboneKept = 0.05;

// To 24 bits, never below `ns`: what was measured exactly is not predicted too short.
float rounded_up(double ns) {
    const auto near = static_cast<float>(ns);
    return near < ns ? std::nextafter(near, 1e30f) : near;
}

Nanos whole_nanos(double ns) {
    constexpr double kMax = 9e18;
    return ns < kMax ? static_cast<Nanos>(std::ceil(ns)) : kNever;
}

}  // namespace

// -- State: learning -----------------------------------------------------------------------------

bool LatencyModel::State::known() const { return primed || accuracy.observations >= kKnownAfter; }

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

void LatencyModel::State::observe(std::uint32_t rows, Nanos ran_ns, std::uint32_t running,
                                  double attainment) {
    refresh(attainment);
    LatencySizeRecord* size = find_or_make(rows);
    if (known()) judge(size, rows, ran_ns, running, attainment);
    ++accuracy.observations;
    margin.age();
    rows_measured = std::max(rows_measured, rows);
    ++unseen;
    if (accuracy.observations <= kEagerUntil) stale = true;

    const bool backed = size != nullptr && size->backed();
    const bool settled = slowdown.settled(running);
    const double ns = static_cast<double>(ran_ns) / slowdown.factor(running);
    LatencyDrift::Change change;
    if (backed) {
        const double median = size->window.median();
        slowdown.learn(running, std::log(static_cast<double>(ran_ns) / median));
        // What others cause is no news of this model, as long as it is not known how much it is.
        if (!settled) return;
        const double log_ratio = std::log(ns / median);
        change = drift.learn({rows, rounded_up(ns), static_cast<float>(log_ratio)}, margin.scale());
    }
    add(size, rows, ns);
    if (change.batches > 0) drifted(change, attainment);
}

// Compares what was predicted with what came.
void LatencyModel::State::judge(const LatencySizeRecord* size, std::uint32_t rows, Nanos ran_ns,
                                std::uint32_t running, double attainment) {
    const double predicted = expected_ns(rows) * slowdown.factor(running);
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

void LatencyModel::State::add(LatencySizeRecord* size, std::uint32_t rows, double ns) {
    if (size == nullptr) {
        if (ns < kWarmUp * line.at(rows)) backbone.learn(rows, ns, tail_weight(rows));
        return;
    }
    review(*size, ns);
    const bool was_backed = size->backed();
    size->window.push(rounded_up(ns));
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
        size.prior_ns = std::min(now_ns, static_cast<double>(kRanMax));
        size.prior_drifts = seen ? 1 : size.prior_drifts + 1;
        size.window.clear();
    }
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
        if (LatencySizeRecord* size = find(sample.rows)) size->window.push(sample.ns);
    }
    if (change.log_shift > 0) rows_measured = rows_seen;
    margin.drifted(change.log_shift, change.batches, attainment);
    ++accuracy.drifts;
}

template <class Archive>
void LatencyModel::State::archive(Archive& archive) {
    archive.vector_size(sizes, 48);
    for (LatencySizeRecord& size : sizes) {
        archive(size.rows);
        archive(size.prior_drifts);
        archive(size.prior_ns);
        archive(size.observations);
        archive(size.last_seen);
        archive(size.confirmed_at);
        size.window.archive(archive);
    }
    backbone.archive(archive);
    margin.archive(archive);
    drift.archive(archive);
    slowdown.archive(archive);
    for (std::uint64_t* word : {&accuracy.observations, &accuracy.predicted, &accuracy.beyond,
                                &accuracy.drifts, &room_made_at}) {
        archive(*word);
    }
    archive(rows_measured);
    archive(primed);
    archive(prior_log_shift);
    archive(curve_ns);
    archive(tail_ns);
    archive(line.alpha_ns);
    archive(line.beta_ns);
    archive(margin_factor);
    archive(unseen);
    archive(stale);
    archive.require(!curve_ns.empty());
}

// -- LatencyModel --------------------------------------------------------------------------------

LatencyModel::LatencyModel(double attainment) : attainment_(0) { set_attainment(attainment); }
LatencyModel::~LatencyModel() = default;
LatencyModel::LatencyModel(LatencyModel&&) noexcept = default;
LatencyModel& LatencyModel::operator=(LatencyModel&&) noexcept = default;

LatencyModel::State& LatencyModel::state() {
    if (!state_) state_ = std::make_unique<State>();
    return *state_;
}

const LatencyModel::State* LatencyModel::predicting() const {
    if (!state_ || !state_->known()) return nullptr;
    state_->refresh(attainment_);
    return state_.get();
}

void LatencyModel::set_attainment(double attainment) {
    // Also of what is no number.
    const double held = attainment >= kAttainmentMin ? attainment : kAttainmentMin;
    const double before = std::exchange(attainment_, std::min(held, kAttainmentMax));
    if (!state_ || before == attainment_) return;
    state_->margin.retarget();
    state_->stale = true;
}

void LatencyModel::prime(std::uint32_t rows, double mean_ns, std::uint64_t count) {
    if (rows == 0 || rows > kRowsMax || !(mean_ns > 0 && mean_ns <= kRanMax)) {
        ++ignored_;
    } else if (count >= kPriorBatchesMin) {
        state().prime(rows, mean_ns);
    }
}

void LatencyModel::observe(std::uint32_t rows, Nanos ran_ns, std::uint32_t running) {
    if (rows == 0 || rows > kRowsMax || ran_ns <= 0 || ran_ns > kRanMax) {
        ++ignored_;
    } else {
        state().observe(rows, ran_ns, LatencySlowdown::held(running), attainment_);
    }
}

bool LatencyModel::known() const { return state_ && state_->known(); }

Nanos LatencyModel::expected(std::uint32_t rows, std::uint32_t running) const {
    const State* known = predicting();
    if (known == nullptr) return 0;
    return whole_nanos(known->expected_ns(rows) * known->factor(running));
}

Nanos LatencyModel::bound(std::uint32_t rows, std::uint32_t running) const {
    const State* known = predicting();
    if (known == nullptr) return 0;
    return whole_nanos(known->expected_ns(rows) * known->factor(running) * known->margin_factor);
}

std::uint32_t LatencyModel::largest_within(Nanos budget_ns, std::uint32_t rows_max,
                                           std::uint32_t running) const {
    if (budget_ns < 0) return 0;
    const State* known = predicting();
    if (known == nullptr) return rows_max;
    const double factor = known->factor(running);
    std::uint32_t within = 0;
    std::uint32_t beyond = rows_max;
    while (within < beyond) {
        const std::uint32_t rows = beyond - (beyond - within) / 2;
        // The same arithmetic as bound(): the answers agree to the nanosecond.
        const double ns = known->expected_ns(rows) * factor * known->margin_factor;
        if (whole_nanos(ns) <= budget_ns) {
            within = rows;
        } else {
            beyond = rows - 1;
        }
    }
    return within;
}

double LatencyModel::margin() const {
    const State* known = predicting();
    return known == nullptr ? 1 : known->margin_factor;
}

std::uint32_t LatencyModel::rows_measured() const { return state_ ? state_->rows_measured : 0; }

std::uint32_t LatencyModel::rows_trusted(std::uint32_t rows_max, std::uint32_t step) const {
    const std::uint32_t measured = rows_measured();
    const std::uint32_t more = std::max({1u, measured / 10, std::min(step, rows_max)});
    return std::min(rows_max, measured + more);
}

double LatencyModel::alpha_ns() const { return state_ ? state_->backbone.line().alpha_ns : 0; }
double LatencyModel::beta_ns() const { return state_ ? state_->backbone.line().beta_ns : 0; }

double LatencyModel::slowdown(std::uint32_t running) const {
    return state_ ? state_->factor(running) : 1;
}

double LatencyModel::scale() const { return state_ ? state_->margin.scale() : 0; }

bool LatencyModel::well_known(std::uint32_t rows) const {
    if (!known()) return false;
    const LatencySizeRecord* size = state_->find(rows);
    return size != nullptr && size->backed();
}

bool LatencyModel::heard_of(std::uint32_t rows) const {
    return known() && state_->find(rows) != nullptr;
}

bool LatencyModel::sensible_prior(std::uint32_t rows, double mean_ns, std::uint64_t count) {
    return rows > 0 && rows <= kRowsMax && mean_ns > 0 && mean_ns <= kRanMax &&
           count >= kPriorBatchesMin;
}

bool LatencyModel::like(const LatencyModel& other, double part) const {
    if (!known() || !other.known()) return false;
    bool any = false;
    for (const LatencySizeRecord& size : state_->sizes) {
        if (!size.trusted(state_->accuracy.observations)) continue;
        const auto own = static_cast<double>(expected(size.rows));
        const auto theirs = static_cast<double>(other.expected(size.rows));
        if (std::fabs(own - theirs) > part * std::min(own, theirs)) return false;
        any = true;
    }
    return any;
}

LatencyModel LatencyModel::shifted(double log_shift) const {
    LatencyModel other(attainment_);
    if (!known()) return other;
    State& state = other.state();
    state = *state_;
    state.refresh(attainment_);
    state.shift(log_shift);
    for (LatencySizeRecord& size : state.sizes)
        size.observations = size.last_seen = size.confirmed_at = 0;
    state.accuracy = LatencyAccuracy();
    state.room_made_at = 0;
    state.primed = true;
    state.drift = LatencyDrift();
    state.margin = LatencyMargin();
    return other;
}

std::uint64_t LatencyModel::observations() const {
    return state_ ? state_->accuracy.observations : 0;
}

std::uint64_t LatencyModel::drifts() const { return state_ ? state_->accuracy.drifts : 0; }

LatencyAccuracy LatencyModel::accuracy() const {
    LatencyAccuracy accuracy;
    if (state_) {
        accuracy = state_->accuracy;
        double sum = 0;
        double squares = 0;
        const std::vector<float>& ratios = state_->margin.ratios().values();
        for (const double ratio : ratios) sum += ratio;
        const auto count = static_cast<double>(std::max<std::size_t>(ratios.size(), 1));
        accuracy.log_ratio_mean = sum / count;
        for (const double ratio : ratios) {
            const double off = ratio - accuracy.log_ratio_mean;
            squares += off * off;
        }
        accuracy.log_ratio_deviation = std::sqrt(squares / count);
    }
    accuracy.ignored = ignored_;
    return accuracy;
}

std::vector<LatencySize> LatencyModel::sizes() const {
    std::vector<LatencySize> sizes;
    if (!state_) return sizes;
    for (const LatencySizeRecord& record : state_->sizes) {
        if (record.observations == 0) continue;
        LatencySize size;
        size.rows = record.rows;
        size.observations = record.observations;
        const bool seen = !record.window.empty();
        const double prior = record.prior_ns * std::exp(state_->prior_log_shift);
        size.median_ns = whole_nanos(seen ? record.window.median() : prior);
        size.longest_ns = seen ? whole_nanos(record.window.largest()) : size.median_ns;
        sizes.push_back(size);
    }
    return sizes;
}

std::size_t LatencyModel::memory_bytes() const {
    if (!state_) return 0;
    std::size_t bytes = sizeof(State) + state_->margin.ratios().memory_bytes();
    bytes += state_->curve_ns.capacity() * sizeof(double);
    bytes += state_->sizes.capacity() * sizeof(LatencySizeRecord);
    for (const LatencySizeRecord& size : state_->sizes) bytes += size.window.memory_bytes();
    return bytes;
}

template <class Archive>
void LatencyModel::archive(Archive& archive) {
    archive(attainment_);
    archive(ignored_);
    bool present = state_ != nullptr;
    archive(present);
    if constexpr (Archive::kReads) state_ = present ? std::make_unique<State>() : nullptr;
    if (present) state_->archive(archive);
}

template void LatencyModel::archive(ArchiveWriter& archive);
template void LatencyModel::archive(ArchiveReader& archive);

}  // namespace infersched::engine
