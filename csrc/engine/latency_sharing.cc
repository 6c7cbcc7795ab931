// What is learned of one backend holds for those like it.
//
// The batches of all backends of a model are learned from together, until one of them differs: it
// goes on with what is known times the factor by which it does, and learns apart. It comes back
// when it takes the same time again.
#include <algorithm>
#include <cmath>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Batches after which a backend apart is compared again.
constexpr std::uint64_t kComparedEvery = 64;
// Those whose times differ by less than this part take the same.
constexpr Nanos kAlikeShare = 20;
// A prior that is so many times off says that the backend is another one.
constexpr double kPriorApart = 1.25;

bool alike(const LatencyModel& one, const LatencyModel& other, std::uint32_t rows) {
    const Nanos a = one.expected(rows);
    const Nanos b = other.expected(rows);
    return std::max(a, b) - std::min(a, b) <= std::min(a, b) / kAlikeShare;
}

LatencyModel& learned_by(ModelState& model, PlacementState& placement) {
    return placement.own_latency ? *placement.own_latency : model.latency;
}

void set_apart(ModelState& model, PlacementState& placement, double log_shift) {
    placement.own_latency = std::make_unique<LatencyModel>(model.latency.shifted(log_shift));
    placement.likeness.forget();
}

void rejoin(ModelState& model, PlacementState& placement) {
    const bool any = std::any_of(
        model.placements.begin(), model.placements.end(),
        [](const PlacementState& each) { return each.configured && !each.own_latency; });
    const LatencyModel& own = *placement.own_latency;
    const std::uint32_t rows = std::max(own.rows_measured(), 1u);
    const bool same = alike(own, model.latency, 1) && alike(own, model.latency, (rows + 1) / 2) &&
                      alike(own, model.latency, rows);
    if (any && !same) return;
    // Where all are apart, the first one begins anew what is common.
    if (!any) model.latency = std::move(*placement.own_latency);
    placement.own_latency.reset();
    placement.likeness.forget();
}

}  // namespace

const LatencyModel& latency_of(const ModelState& model, const PlacementState& placement) {
    return placement.own_latency ? *placement.own_latency : model.latency;
}

const LatencyModel& reference_latency(const ModelState& model) {
    return latency_of(model, model.placements[model.reference]);
}

const LatencyModel& Core::planning_latency(const ModelState& model, const Group& group) const {
    const PlacementState* pinned = const_cast<ModelState&>(model).placement(group.key.pin);
    return pinned != nullptr ? latency_of(model, *pinned) : reference_latency(model);
}

void Core::learn_latency(ModelState& model, PlacementState& placement, std::uint32_t rows,
                         Nanos ran_ns) {
    LatencyModel& latency = learned_by(model, placement);
    const double expected =
        latency.well_known(rows) ? static_cast<double>(latency.expected(rows)) : 0;
    const std::uint64_t drifts = latency.drifts();
    latency.observe(rows, ran_ns);
    if (placement.own_latency) {
        if (latency.observations() % kComparedEvery == 0) {
            rejoin(model, placement);
            update_reference(model);
        }
    } else if (latency.drifts() != drifts) {
        for (PlacementState& each : model.placements) each.likeness.forget();
    } else if (expected > 0 && ran_ns > 0 && model.placements.size() > 1) {
        const double log_ratio = std::log(static_cast<double>(ran_ns) / expected);
        const double shift = placement.likeness.learn(log_ratio, latency.scale());
        if (shift != 0) {
            set_apart(model, placement, shift);
            update_reference(model);
        }
    }
    if (model.reference == kNoSlot) update_reference(model);
    trust_rows(model, placement);
}

bool Core::prime_latency(std::uint32_t index, std::uint32_t backend, std::uint32_t rows,
                         Nanos mean_ns, std::uint64_t count) {
    if (index >= models_.size() || rows == 0 || mean_ns <= 0 || count == 0) return false;
    ModelState& model = models_[index];
    PlacementState* placement = model.placement(backend);
    if (placement == nullptr) return false;
    const bool sensible = LatencyModel::sensible_prior(rows, static_cast<double>(mean_ns), count);
    if (sensible && !placement->own_latency && model.latency.heard_of(rows)) {
        const auto expected = static_cast<double>(model.latency.expected(rows));
        const double shift = std::log(static_cast<double>(mean_ns) / expected);
        // What ran tells more than what others say.
        const bool ran = model.latency.observations() > 0;
        if (ran || std::fabs(shift) < std::log(kPriorApart)) return true;
        set_apart(model, *placement, shift);
    }
    LatencyModel& latency = learned_by(model, *placement);
    const std::uint64_t ignored = latency.ignored();
    latency.prime(rows, static_cast<double>(mean_ns), count);
    update_reference(model);
    return latency.ignored() == ignored;
}

}  // namespace infersched::engine
