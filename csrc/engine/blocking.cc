#include "engine/blocking.h"

#include <algorithm>
#include <cmath>

#include "engine/core.h"
#include "engine/priorities.h"

namespace infersched::engine {
namespace {

// Part of the rows that a random number of arrivals varies by for which there is to be time.
constexpr double kDeviations = 1;
constexpr double kTargetMax = 1e9;

// The load of one metered level of a component and those above it.
struct LevelLoad {
    double busy = 0;           // executors that its rows keep busy
    double batches_ns = 0;     // of the first rows of all batches that come within the objectives
    double roots = 0;          // sum of sqrt(rate * beta)
    double alone_ns = kNever;  // the least of its models
    double horizon_ns = 0;     // the longest objective
};

}  // namespace

std::size_t metered_level(std::uint32_t queue_level) {
    if ((queue_level & kBestEffortBit << 1) != 0) return kMeteredLevels;
    return std::min<std::size_t>(std::max(queue_level / 2, 1u) - 1, kMeteredLevels - 1);
}

// Visits the levels that the arrivals of every group are of: their rate and that of those above.
template <class Visit>
void Core::each_metered_level(const Component& component, const Visit& visit) {
    for (const std::uint32_t index : component.metered) {
        ModelState& model = models_[index];
        if (model.reference == kNoSlot) continue;
        for (std::uint32_t g = 0; g < model.groups.slots(); ++g) {
            Group& group = model.groups[g];
            if (group.rate.idle()) continue;
            const double per_ns = group.rate.per_s() / 1e9;
            double seen = 0;
            for (std::size_t l = 0; l < kMeteredLevels && seen < 1 - 1e-3; ++l) {
                seen += group.mix.part(l);
                visit(l, group, planning_latency(model, group), per_ns * seen);
            }
        }
    }
}

// What the load of every level, with those above it, asks of batches, as retarget() does for all of
// them; and how long a batch below may last. While an executor is held for W, rate * W rows come,
// which are then to be done by the executors there are: W + l(rate * W / n) <= budget for every
// model, and for all of them together.
void Core::plan_levels(Component& component) {
    component.holds.fill(Hold());
    if (!component.levels) return;
    std::array<LevelLoad, kMeteredLevels> loads;
    const double slots = std::max(component.slots, 1u);
    using Each = const LatencyModel&;
    each_metered_level(component, [&](std::size_t l, Group& group, Each latency, double rate) {
        const double alone = std::min(rate * group.mix.budget_ns(l), 1.0);
        loads[l].busy += rate * latency.alpha_ns();
        loads[l].batches_ns += alone * latency.beta_ns();
        loads[l].roots += std::sqrt(rate * latency.beta_ns());
    });
    each_metered_level(component, [&](std::size_t l, Group& group, Each latency, double rate) {
        LevelLoad& load = loads[l];
        const double root = std::sqrt(rate * latency.beta_ns());
        const double free = slots - load.busy;
        const double target = free > 0 ? std::ceil(root * load.roots / free) : kTargetMax;
        group.level_targets[l] = static_cast<std::uint32_t>(std::clamp(target, 1.0, kTargetMax));
        if (group.mix.part(l) <= 0) return;
        const double budget = group.mix.budget_ns(l);
        const double row_ns = latency.alpha_ns() * latency.margin() / slots;
        const double rows = 1 + rate * row_ns;
        const double varies = kDeviations * std::sqrt(rate * budget / 2) * row_ns;
        const double own = (budget - static_cast<double>(latency.bound(1)) - varies) / rows;
        const double all = (budget - load.batches_ns / slots) / (1 + load.busy / slots);
        load.alone_ns = std::min({load.alone_ns, own, all});
        load.horizon_ns = std::max(load.horizon_ns, budget);
    });
    Hold above;
    for (std::size_t l = 0; l < kMeteredLevels; ++l) {
        if (loads[l].horizon_ns > 0) {
            const auto alone = static_cast<Nanos>(std::max(loads[l].alone_ns, 1.0));
            above.alone_ns = std::min(above.alone_ns, alone);
            above.horizon_ns = std::max(above.horizon_ns, static_cast<Nanos>(loads[l].horizon_ns));
        }
        component.holds[l + 1] = above;
    }
}

// Whether batches of known latency with rows of this queue level have others to leave room for.
bool Core::yields(const ModelState& model, std::uint32_t queue_level) const {
    if (rearrange_ || model.component == kNoSlot || model.reference == kNoSlot) return false;
    return components_[model.component].holds[metered_level(queue_level)].horizon_ns > 0;
}

// How long a batch with rows of this queue level that starts now may take: until what is above has
// no time left, unless another executor is free for that, and as long as there is room on all of
// them for what is queued above.
Nanos Core::hold_limit(const ModelState& model, std::uint32_t queue_level, Nanos now) const {
    if (!yields(model, queue_level)) return kNever;
    const Component& component = components_[model.component];
    const std::size_t level = metered_level(queue_level);
    const Hold& hold = component.holds[level];
    const Backlog& backlog = component.backlog;
    const bool alone = backlog.free_beside(now) > add_saturating(now, hold.alone_ns);
    const Nanos room = backlog.room(2 * level - 1, hold.horizon_ns, now);
    return alone ? std::min(hold.alone_ns, room) : room;
}

}  // namespace infersched::engine
