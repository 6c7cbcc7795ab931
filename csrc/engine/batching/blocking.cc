#include "engine/batching/blocking.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Part of the rows that a random number of arrivals varies by for which there is to be time.
constexpr double kDeviations = 1;
constexpr double kTargetMax = 1e9;
// Models share executors once all but the largest have had more than this part of the device time:
// a few requests are none of the load.
constexpr double kOthersMin = 0.05;

// What comes of one group within its objective.
struct GroupLoad {
    double budget_ns = 0;
    double busy = 0;      // executors that its rows keep busy
    double batch_ns = 0;  // of the first row of its batch, as often as one comes
    bool of_level = false;
};

// The load of one metered level of a component and those above it.
struct LevelLoad {
    std::vector<GroupLoad> groups;
    double busy = 0;           // executors that its rows keep busy
    double roots = 0;          // sum of sqrt(rate * beta)
    double alone_ns = kNever;  // the least of its models
    double horizon_ns = 0;     // the longest objective
};

// How long one batch may hold an executor so that the others are through with all groups in time:
// by the end of an objective, those whose objectives are no longer must have run.
double least_for_all(LevelLoad& load, double slots) {
    std::sort(load.groups.begin(), load.groups.end(),
              [](const GroupLoad& a, const GroupLoad& b) { return a.budget_ns < b.budget_ns; });
    double least = kNever;
    double busy = 0;
    double batches_ns = 0;
    for (const GroupLoad& group : load.groups) {
        busy += group.busy;
        batches_ns += group.batch_ns;
        if (!group.of_level) continue;
        least = std::min(least, (group.budget_ns - batches_ns / slots) / (1 + busy / slots));
    }
    return least;
}

// Whether more than one model takes a part of the device time that counts.
bool several_share(const Component& component, const std::deque<ModelState>& models) {
    double all = 0;
    double largest = 0;
    for (const std::uint32_t index : component.metered) {
        all += models[index].device_ns;
        largest = std::max(largest, models[index].device_ns);
    }
    return all - largest > kOthersMin * all;
}

}  // namespace

// Visits every group for each level, down to the lowest that any arrivals are of: its rate of that
// level and those above.
template <class Visit>
void Core::each_metered_level(const Component& component, const Visit& visit) {
    std::size_t lowest = 0;
    for (const std::uint32_t index : component.metered) {
        ModelState& model = models_[index];
        for (const std::uint32_t g : model.groups.metered()) {
            lowest = std::max<std::size_t>(lowest, model.groups[g].mix.lowest());
        }
    }
    for (const std::uint32_t index : component.metered) {
        ModelState& model = models_[index];
        if (model.reference == kNoSlot) continue;
        for (const std::uint32_t g : model.groups.metered()) {
            Group& group = model.groups[g];
            const double per_ns = group.rate.per_s() / 1e9;
            double seen = 0;
            for (std::size_t l = 0; l <= lowest; ++l) {
                seen += group.mix.part(l);
                visit(l, group, planning_latency(model, group), per_ns * seen);
            }
        }
    }
}

// What the load of every level, with those above it, asks of batches, as retarget() does for all of
// them; and how long a batch below may last. While an executor is held for W, rate * W rows come,
// which are then to be done by the executors there are: W + l(rate * W / n) <= budget for every
// model, and for all of them together. Where several models share them, by means: what is above
// goes first all the same, and time that is kept for what may come or take longer is taken from
// large batches of the slow ones.
void Core::plan_levels(Component& component) {
    component.holds.fill(Hold());
    if (!component.levels) return;
    std::array<LevelLoad, kMeteredLevels> loads;
    const double slots = std::max(component.slots, 1u);
    const bool by_means = several_share(component, models_);
    using Each = const LatencyModel&;
    each_metered_level(component, [&](std::size_t l, Group& group, Each latency, double rate) {
        const double budget = group.mix.budget_ns(l);
        const double busy = rate * latency.alpha_ns();
        const double batch_ns = std::min(rate * budget, 1.0) * latency.beta_ns();
        loads[l].groups.push_back({budget, busy, batch_ns, group.mix.part(l) > 0});
        loads[l].busy += busy;
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
        const double row_ns = latency.alpha_ns() / slots * (by_means ? 1 : latency.margin());
        const double varies = by_means ? 0 : kDeviations * std::sqrt(rate * budget / 2) * row_ns;
        const Nanos batch_ns = by_means ? latency.expected(1) : latency.bound(1);
        const double own = budget - static_cast<double>(batch_ns) - varies;
        load.alone_ns = std::min(load.alone_ns, own / (1 + rate * row_ns));
        load.horizon_ns = std::max(load.horizon_ns, budget);
    });
    Hold above;
    above.by_means = by_means;
    for (std::size_t l = 0; l < kMeteredLevels; ++l) {
        if (loads[l].horizon_ns > 0) {
            const double least = std::min(loads[l].alone_ns, least_for_all(loads[l], slots));
            const auto alone = static_cast<Nanos>(std::max(least, 1.0));
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

// How long a batch with rows of this queue level that starts now may take, by its bound with this
// margin: until what is above has no time left, unless another executor is free for that, and as
// long as there is room on all of them for what is queued above.
Nanos Core::hold_limit(const ModelState& model, std::uint32_t queue_level, double margin,
                       Nanos now) const {
    if (!yields(model, queue_level)) return kNever;
    const Component& component = components_[model.component];
    const std::size_t level = metered_level(queue_level);
    const Hold& hold = component.holds[level];
    const Backlog& backlog = component.backlog;
    const Nanos alone_ns = hold.alone_bound(margin);
    const bool alone = backlog.free_beside(now) > add_saturating(now, alone_ns);
    const Nanos room = backlog.room(2 * level - 1, hold.horizon_ns, now);
    return alone ? std::min(alone_ns, room) : room;
}

}  // namespace infersched::engine
