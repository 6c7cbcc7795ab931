#include "engine/latency/model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/archive.h"
#include "engine/latency/state.h"

namespace infersched::engine {
namespace {

constexpr double kAttainmentMin = 0.5;
constexpr double kAttainmentMax = 0.9999;
constexpr std::uint32_t kRowsMax = 1u << 24;

}  // namespace

template <class Archive>
void LatencyModel::State::archive(Archive& archive) {
    archive.vector_size(sizes, 64);
    for (LatencySizeRecord& size : sizes) {
        archive(size.rows);
        archive(size.prior_drifts);
        archive(size.prior_ns);
        archive(size.observations);
        archive(size.last_seen);
        archive(size.confirmed_at);
        archive(size.last_ns);
        archive(size.last_beside);
        archive(size.slowdown_version);
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
    auto sizes_brought = static_cast<std::uint64_t>(brought);
    archive(sizes_brought);
    brought = static_cast<std::size_t>(sizes_brought);
    archive.require(!curve_ns.empty() && brought <= sizes.size());
}

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

double LatencyModel::held(double attainment) {
    // Also of what is no number.
    return attainment >= kAttainmentMin ? std::min(attainment, kAttainmentMax) : kAttainmentMin;
}

void LatencyModel::set_attainment(double attainment) {
    const double before = std::exchange(attainment_, held(attainment));
    if (!state_ || before == attainment_) return;
    state_->margin.retarget();
    state_->stale = true;
}

void LatencyModel::prime(std::uint32_t rows, double mean_ns, std::uint64_t count) {
    if (rows == 0 || rows > kRowsMax || !(mean_ns > 0 && mean_ns <= kLatencyRanMax)) {
        ++ignored_;
    } else if (count >= kPriorBatchesMin) {
        state().prime(rows, mean_ns);
    }
}

void LatencyModel::observe(std::uint32_t rows, Nanos ran_ns, double running) {
    if (rows == 0 || rows > kRowsMax || ran_ns <= 0 || ran_ns > kLatencyRanMax) {
        ++ignored_;
    } else {
        state().observe(rows, ran_ns, LatencySlowdown::beside(running), attainment_);
    }
}

bool LatencyModel::known() const { return state_ && state_->known(); }

bool LatencyModel::young() const { return observations() > 0 && state_->young(); }

Nanos LatencyModel::expected(std::uint32_t rows, double running) const {
    const State* known = predicting();
    if (known == nullptr) return 0;
    return whole_nanos(known->expected_ns(rows) * known->factor(running));
}

Nanos LatencyModel::bound(std::uint32_t rows) const {
    const State* known = predicting();
    return known == nullptr ? 0 : whole_nanos(known->bound_ns(rows));
}

std::uint32_t LatencyModel::largest_within(Nanos budget_ns, std::uint32_t rows_max) const {
    if (budget_ns < 0) return 0;
    const State* known = predicting();
    if (known == nullptr) return rows_max;
    std::uint32_t within = 0;
    std::uint32_t beyond = rows_max;
    while (within < beyond) {
        const std::uint32_t rows = beyond - (beyond - within) / 2;
        if (whole_nanos(known->bound_ns(rows)) <= budget_ns) {
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

double LatencyModel::mean_ratio() const { return state_ ? std::exp(state_->margin.mean()) : 1; }

double LatencyModel::margin_of(double attainment) const {
    return state_ ? std::exp(state_->margin.log_margin_of(attainment)) : 1;
}

std::uint32_t LatencyModel::rows_measured() const { return state_ ? state_->rows_measured : 0; }

std::uint32_t LatencyModel::rows_trusted(std::uint32_t rows_max, std::uint32_t step) const {
    const std::uint32_t measured = rows_measured();
    const std::uint32_t more = std::max({1u, measured / 10, std::min(step, rows_max)});
    return std::min(rows_max, measured + more);
}

double LatencyModel::alpha_ns() const {
    return state_ ? state_->backbone.line().alpha_ns * state_->slowdown.usual() : 0;
}
double LatencyModel::beta_ns() const {
    return state_ ? state_->backbone.line().beta_ns * state_->slowdown.usual() : 0;
}

double LatencyModel::slowdown(double running) const { return state_ ? state_->factor(running) : 1; }

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
    return rows > 0 && rows <= kRowsMax && mean_ns > 0 && mean_ns <= kLatencyRanMax &&
           count >= kPriorBatchesMin;
}

bool LatencyModel::like(const LatencyModel& other, double part) const {
    if (!known() || !other.known()) return false;
    bool any = false;
    for (const LatencySizeRecord& size : state_->sizes) {
        if (!size.trusted(state_->accuracy.observations)) continue;
        const auto own = static_cast<double>(expected(size.rows, 1));
        const auto theirs = static_cast<double>(other.expected(size.rows, 1));
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
    for (LatencySizeRecord& size : state.sizes) {
        size.observations = size.last_seen = size.confirmed_at = 0;
        size.last_ns = 0;
    }
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
    const double slow = state_->slowdown.usual();
    for (const LatencySizeRecord& record : state_->sizes) {
        if (record.observations == 0) continue;
        LatencySize size;
        size.rows = record.rows;
        size.observations = record.observations;
        const bool seen = !record.window.empty();
        const double prior = record.prior_ns * std::exp(state_->prior_log_shift);
        size.median_ns = whole_nanos(slow * (seen ? record.window.median() : prior));
        size.longest_ns = seen ? whole_nanos(slow * record.window.largest()) : size.median_ns;
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
