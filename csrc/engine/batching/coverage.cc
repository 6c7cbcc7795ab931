// Which part of its batches a model's bounds are to cover.
//
// As many as its attainment asks for, as long as that leaves room for the load. Where stalls or
// another tenant of the host lengthen more batches than may be late, bounds that cover them leave
// time for small batches only, and what small batches have no room for is late as well. Then bounds
// cover the part of which most requests are in time: q of those that executors have room for, with
// batches as large as the margin of q allows. Not for the sake of lower priorities, though: as long
// as there is room for the highest one, bounds are what that asks for.
#include "engine/batching/coverage.h"

#include <algorithm>
#include <array>
#include <vector>

#include "engine/batching/load_rules.h"
#include "engine/batching/staggering.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

// Parts that are tried besides the one asked for.
constexpr std::array<double, 5> kFewer = {0.95, 0.9, 0.8, 0.65, 0.5};
// Of the executors: as many requests as that find room in time, where they come at random.
constexpr double kRoom = 0.8;
// Margins below this leave little to gain.
constexpr double kWideMargin = 1.25;
// Another part than the present one must be worth it by so much; the one asked for need not.
constexpr double kWorth = 1.05;

double covered_asked(const ModelState& model) {
    return LatencyModel::held(batches_covered(model.policy.attainment));
}

// Of the requests of its groups; kMeteredLevels where they are not told apart.
std::size_t highest_level(ModelState& model) {
    std::size_t highest = kMeteredLevels;
    for (const std::uint32_t g : model.groups.metered()) {
        const LevelMix& mix = model.groups[g].mix;
        for (std::size_t level = 0; level < highest; ++level) {
            if (mix.part(level) > 0) highest = level;
        }
    }
    return highest;
}

}  // namespace

bool covers_wide(const ModelState& model) {
    const LatencyModel& latency = reference_latency(model);
    return latency.margin() >= kWideMargin || latency.attainment() != covered_asked(model);
}

// Executors that the model keeps busy with batches as large as this margin leaves time for; with
// its requests of this level alone unless that is kMeteredLevels.
double Core::busy_of(ModelState& model, double margin, std::size_t level) {
    const LatencyModel& latency = reference_latency(model);
    const auto bound_ns = [&](std::uint32_t rows) {
        return margin * static_cast<double>(latency.expected(rows));
    };
    double busy = 0;
    for (const std::uint32_t g : model.groups.metered()) {
        const Group& group = model.groups[g];
        const double part = level < kMeteredLevels ? group.mix.part(level) : 1;
        const std::uint32_t most = rows_risked(model, &group);
        const std::uint32_t rows =
            staggered_rows(latency, bound_ns, group, model.request_rows, 0, most);
        busy += part * group.rate.per_s() / 1e9 * (latency.alpha_ns() + latency.beta_ns() / rows);
    }
    return busy * latency.mean_ratio();
}

double Core::best_coverage(ModelState& model, double capacity) {
    const LatencyModel& latency = reference_latency(model);
    const double asked = covered_asked(model);
    const double now = latency.attainment();
    const auto busy = [&](double covered, std::size_t level) {
        const double margin = covered == now ? latency.margin() : latency.margin_of(covered);
        return busy_of(model, margin, level);
    };
    const double room = kRoom * capacity;
    const std::size_t highest = highest_level(model);
    if (highest < kMeteredLevels && busy(asked, highest) <= room) return asked;
    const auto in_time = [&](double covered) {
        return covered * std::min(1.0, room / busy(covered, kMeteredLevels));
    };
    const double as_asked = in_time(asked);
    double best = now;
    double most = kWorth * in_time(now);
    for (const double covered : kFewer) {
        if (covered >= asked || covered == now) continue;
        const double part = in_time(covered);
        if (part <= most) continue;
        best = covered;
        most = part;
    }
    return as_asked * kWorth >= most ? asked : best;
}

void Core::cover_batches(const Component& component) {
    std::vector<std::uint32_t> wide;
    for (const std::uint32_t index : component.metered) {
        if (models_[index].reference != kNoSlot && covers_wide(models_[index]))
            wide.push_back(index);
    }
    if (wide.empty()) return;
    const auto busy_now = [this](ModelState& model) {
        return busy_of(model, reference_latency(model).margin(), kMeteredLevels);
    };
    double all = 0;
    for (const std::uint32_t index : component.metered) {
        if (models_[index].reference != kNoSlot) all += busy_now(models_[index]);
    }
    // Where there is room for all, all cover what they are asked to.
    const auto as_asked = [this](std::uint32_t index) {
        const ModelState& model = models_[index];
        return reference_latency(model).attainment() == covered_asked(model);
    };
    if (all <= kRoom * component.slots && std::all_of(wide.begin(), wide.end(), as_asked)) return;
    for (const std::uint32_t index : wide) {
        ModelState& model = models_[index];
        // What others leave, or its part where all of them want more than there is.
        const double own = busy_now(model);
        const double part = all > 0 ? component.slots * own / all : component.slots;
        const double covered = best_coverage(model, std::max(part, component.slots - (all - own)));
        model.latency.set_attainment(covered);
        for (PlacementState& placement : model.placements) {
            if (placement.own_latency) placement.own_latency->set_attainment(covered);
        }
    }
}

}  // namespace infersched::engine
