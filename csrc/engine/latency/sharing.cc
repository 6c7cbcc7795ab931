// What is learned of one backend holds for those like it.
//
// A backend learns apart at first. Once the first one has run a few batches it is what the others
// are compared with, and who takes the same time learns together with it, until it differs: it goes
// on with what is known times the factor by which it does, and learns apart. It comes back when it
// takes the same time again. Who has not run anything is taken to be like the others, or, as long
// as nobody is, like the fastest.
#include <algorithm>
#include <cmath>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Batches of a backend from which on others are compared with it.
constexpr std::uint64_t kFoundingBatches = 4;
// Of a backend's first batches, the latest say whether it is like the others.
constexpr std::uint64_t kYoungBatches = 64;
// Batches after which an older backend apart is compared again.
constexpr std::uint64_t kComparedEvery = 64;
// Those whose times differ by less than this part take the same.
constexpr double kAlikeShare = 0.05;
// A prior that is so many times off says that the backend is another one.
constexpr double kPriorApart = 1.25;
// Sizes kept of priors that say the same: more of them tell little more.
constexpr std::size_t kRowsAlikeMax = 64;

LatencyModel& learned_by(ModelState& model, PlacementState& placement) {
    return placement.own_latency ? *placement.own_latency : model.latency;
}

bool any_together(const ModelState& model) {
    return std::any_of(model.placements.begin(), model.placements.end(),
                       [](const PlacementState& each) {
                           return each.configured && !each.own_latency && each.batches_learned > 0;
                       });
}

// Of a backend that has run nothing, a prior said what is known of the others.
void note_alike(PlacementState& placement, std::uint32_t rows) {
    std::vector<std::uint32_t>& known = placement.rows_alike;
    const bool listed = std::find(known.begin(), known.end(), rows) != known.end();
    if (!listed && known.size() < kRowsAlikeMax) known.push_back(rows);
}

// Of another backend, nothing is known but what was said of it.
void set_apart_by_priors(ModelState& model, PlacementState& placement) {
    placement.own_latency = std::make_unique<LatencyModel>(model.latency.attainment());
    for (const std::uint32_t rows : placement.rows_alike) {
        const auto said = static_cast<double>(model.latency.expected(rows));
        placement.own_latency->prime(rows, said, LatencyModel::kPriorBatchesMin);
    }
}

void set_apart(ModelState& model, PlacementState& placement, double log_shift) {
    placement.own_latency = std::make_unique<LatencyModel>(model.latency.shifted(log_shift));
    placement.likeness.forget();
}

// A backend that runs its first batch.
void set_out(ModelState& model, PlacementState& placement) {
    model.latencies_differ = true;
    if (any_together(model)) return set_apart(model, placement, 0);
    placement.own_latency = std::make_unique<LatencyModel>(model.latency.attainment());
}

void forget_likenesses(ModelState& model) {
    for (PlacementState& each : model.placements) each.likeness.forget();
}

// A backend apart ran a batch that took `ran_ns`; the others take `expected` (0: not known) for it.
// Whether it learns with them from here on.
bool joined(ModelState& model, PlacementState& placement, double ran_ns, double expected) {
    const LatencyModel& own = *placement.own_latency;
    if (!any_together(model)) {
        if (own.observations() < kFoundingBatches) return false;
        // What is common begins anew.
        model.latency = std::move(*placement.own_latency);
        placement.own_latency.reset();
        forget_likenesses(model);
        return true;
    }
    bool same = false;
    if (placement.batches_learned < kYoungBatches) {
        same = expected > 0 && placement.likeness.same(std::log(ran_ns / expected));
    } else if (own.observations() % kComparedEvery == 0) {
        same = own.like(model.latency, kAlikeShare);
    }
    if (!same) return false;
    placement.own_latency.reset();
    placement.likeness.forget();
    return true;
}

// What those who learn together take for such a batch; 0: that is not known.
double foretold(const ModelState& model, const PlacementState& placement, std::uint32_t rows,
                double running) {
    const LatencyModel& common = model.latency;
    const bool usable = placement.own_latency ? common.known() : common.well_known(rows);
    return usable ? static_cast<double>(common.expected(rows, running)) : 0;
}

// Of a backend of which nothing is known.
const LatencyModel& fallback_latency(const ModelState& model) {
    if (model.latency.known() || model.reference == kNoSlot) return model.latency;
    const PlacementState& fastest = model.placements[model.reference];
    return fastest.own_latency ? *fastest.own_latency : model.latency;
}

}  // namespace

const LatencyModel& latency_of(const ModelState& model, const PlacementState& placement) {
    const LatencyModel* own = placement.own_latency.get();
    return own != nullptr && own->known() ? *own : fallback_latency(model);
}

void forget_latencies(ModelState& model) {
    model.latency = LatencyModel();
    for (PlacementState& each : model.placements) {
        each.own_latency.reset();
        each.likeness.forget();
        each.rows_alike.clear();
        each.batches_learned = 0;
        each.head_start = HeadStart();
    }
}

const LatencyModel& reference_latency(const ModelState& model) {
    return latency_of(model, model.placements[model.reference]);
}

const LatencyModel& Core::planning_latency(const ModelState& model, const Group& group) const {
    const PlacementState* pinned = const_cast<ModelState&>(model).placement(group.key.pin);
    return pinned != nullptr ? latency_of(model, *pinned) : reference_latency(model);
}

void Core::learn_latency(ModelState& model, const BatchRecord& batch, std::uint32_t rows,
                         Nanos now) {
    PlacementState& placement = *model.placement(batch.backend);
    const Nanos ran_ns = now - batch.started_at;
    const std::uint64_t beside_ns = places_.ran_ns(batch.place, now) - batch.ran_before;
    const double running = static_cast<double>(beside_ns) / static_cast<double>(ran_ns);
    // The last replies of one that was removed: it is compared with nobody any more.
    if (!placement.configured) return;
    if (placement.batches_learned == 0) placement.rows_alike.clear();
    if (placement.batches_learned == 0 && !placement.own_latency) set_out(model, placement);
    // As long as nothing is known of any of them, what all ran is better than nothing: many of them
    // would each run their first batches blindly.
    if (model.reference == kNoSlot && placement.own_latency) {
        model.latency.observe(rows, ran_ns, running);
    }
    LatencyModel& latency = learned_by(model, placement);
    const double expected = foretold(model, placement, rows, running);
    const std::uint64_t drifts = latency.drifts();
    const std::uint64_t observations = latency.observations();
    latency.observe(rows, ran_ns, running);
    if (latency.observations() == observations) return;
    if (latency.young()) model.doubted = true;
    ++placement.batches_learned;
    const auto ran = static_cast<double>(ran_ns);
    if (placement.own_latency) {
        if (joined(model, placement, ran, expected)) update_reference(model);
    } else if (latency.drifts() != drifts) {
        forget_likenesses(model);
    } else if (expected > 0 && model.placements.size() > 1) {
        const double shift = placement.likeness.learn(std::log(ran / expected), latency.scale());
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
    if (index >= models_.size()) return false;
    ModelState& model = models_[index];
    PlacementState* placement = model.placement(backend);
    if (placement == nullptr) return false;
    if (rows == 0 || mean_ns <= 0 || count == 0) {
        ++placement->ignored_times.prior;
        return false;
    }
    const auto mean = static_cast<double>(mean_ns);
    const bool sensible = LatencyModel::sensible_prior(rows, mean, count);
    if (sensible && !placement->own_latency && placement->batches_learned == 0) {
        // Those that ran tell more than a profile that says the same.
        const bool heard = model.latency.heard_of(rows);
        const auto expected = static_cast<double>(model.latency.expected(rows));
        const bool same = heard && std::fabs(std::log(mean / expected)) < std::log(kPriorApart);
        if (same) {
            note_alike(*placement, rows);
            return true;
        }
        if (heard) {
            set_apart_by_priors(model, *placement);
        } else {
            set_apart(model, *placement, 0);
        }
    }
    LatencyModel& latency = learned_by(model, *placement);
    const std::uint64_t ignored = latency.ignored();
    latency.prime(rows, mean, count);
    update_reference(model);
    if (latency.ignored() == ignored) return true;
    ++placement->ignored_times.prior;
    return false;
}

}  // namespace infersched::engine
