// How large batches should be: just large enough for the present load.
//
// With arrival rates r and latencies alpha * b + beta, executors are busy for the sum of
// r * (alpha + beta / b). The sizes b that just fit the executors and lengthen batches least are
// proportional to sqrt(r * beta). Under light load that is one row, and nothing waits. Where one
// row is more than a group needs, the others need less.
#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/batching/coverage.h"
#include "engine/batching/staggering.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

constexpr Nanos kBudgetShare = 16;
// Rows are waited for as if so much of the executors, and so many of them at most, were not there:
// sizes that keep all of them busy with the mean load have nothing left for what comes at random.
// Few rows may be all that there are clients for.
constexpr double kSpare = 0.05;
constexpr double kSpareMax = 0.4;
constexpr double kSpareRowsMin = 4;
// Waiting for one more row of b leaves an executor idle for 1 / rate, and saves beta / b. So much
// of the idle time counts, as others may not need it.
constexpr double kIdleLost = 0.3;
// Others that are no more of the load than this, a few requests, do not count as others.
constexpr double kStrayMax = 0.05;
constexpr double kRowsShare = 16;
// Rows that arrive at random gather within their mean time and so many deviations of it, mostly.
constexpr double kGatherDeviations = 1.5;
constexpr Nanos kTicksMissedMax = 100;
// Of the device time of a model, with every tick: five seconds count.
constexpr double kDeviceTimeKept = 0.98;
// Rows that have not come in so many times the time that they usually take are not waited for,
// however far the deadline is: clients may all be waiting for an answer.
constexpr double kGatherTurns = 4;
constexpr double kGatherMaxNs = 60e9;

// Of a group: sqrt(rate * beta), and the largest size.
struct Share {
    double root = 0;
    double limit = 1;
    double rows(double factor) const { return std::clamp(root * factor, 1.0, limit); }
};

// By how much the roots are to be multiplied so that batches of these sizes keep no more than
// `capacity` executors busy, rows apart. No more than where no size is held: if largest sizes are
// in the way, longer batches of the others make it worse.
double fitting_factor(const std::vector<Share>& shares, double capacity) {
    constexpr int kHalvings = 30;
    double roots = 0;
    for (const Share& share : shares) roots += share.root;
    const double even = roots / capacity;
    const bool spare = std::any_of(shares.begin(), shares.end(), [&](const Share& share) {
        return share.root > 0 && share.root * even < 1;
    });
    const auto fits = [&](double factor) {
        double busy = 0;
        for (const Share& share : shares) busy += share.root * share.root / share.rows(factor);
        return busy <= capacity;
    };
    if (!spare || !fits(even)) return even;
    double low = 0;
    double high = even;
    for (int i = 0; i < kHalvings; ++i) {
        const double middle = (low + high) / 2;
        (fits(middle) ? high : low) = middle;
    }
    return high;
}

// The model, and the group, that is all of the load but for a few requests which have the time to
// wait for one of its batches; none where several are.
struct SoleLoad {
    std::uint32_t model = kNoSlot;
    const Demand* group = nullptr;
};

// The demands of a model follow one another.
SoleLoad sole_load(const std::vector<Demand>& demands) {
    double all = 0;
    for (const Demand& demand : demands) all += demand.busy();
    SoleLoad sole;
    std::uint32_t model = kNoSlot;
    double of_model = 0;
    double budget_ns = 0;
    for (const Demand& demand : demands) {
        if (demand.model != model) of_model = 0;
        model = demand.model;
        of_model += demand.busy();
        if (of_model >= (1 - kStrayMax) * all) sole.model = model;
        if (demand.busy() >= (1 - kStrayMax) * all) sole.group = &demand;
    }
    for (const Demand& demand : demands) {
        if (demand.model == sole.model) budget_ns = std::max(budget_ns, demand.budget_ns);
    }
    // Its batches take up to half of its objective.
    for (const Demand& demand : demands) {
        if (demand.budget_ns >= budget_ns / 2) continue;
        if (&demand != sole.group) sole.group = nullptr;
        if (demand.model != sole.model) sole.model = kNoSlot;
    }
    return sole;
}

// Rows that a batch waits for: none whose coming costs more than it saves. A group by itself waits
// for all that the load asks for unless that is more than twice as many.
std::uint32_t rows_worth_waiting(const Demand& demand, bool alone) {
    const double worth = std::max(std::floor(demand.root * demand.root / kIdleLost), 1.0);
    const bool needed = alone && 2 * worth > demand.rows_awaited;
    const double rows = needed ? demand.rows_awaited : std::min(demand.rows_awaited, worth);
    return static_cast<std::uint32_t>(std::max(rows, demand.rows_held));
}

}  // namespace

// Refused requests count as well: they are the load that batches are to be large enough for.
void Core::meter(ModelState& model, const Request& request, const Arrival& arrival, Nanos now) {
    if (!model.learns || arrival.deadline == kNever || arrival.group == kNoSlot) return;
    if (!model.groups.meter(arrival.group)) return;
    if (request.rows != model.request_rows) {
        const double rows = std::min(request.rows, rows_limit(model.policy));
        double& mean = model.request_rows;
        mean = mean == 0 ? rows : mean + (rows - mean) / kRowsShare;
    }
    Group& group = model.groups[arrival.group];
    group.rate.count(request.rows);
    const Nanos budget = arrival.deadline - arrival.at;
    group.budget_ns =
        group.budget_ns == 0 ? budget : group.budget_ns + (budget - group.budget_ns) / kBudgetShare;
    if (model.component != kNoSlot && !rearrange_ && components_[model.component].levels) {
        const std::size_t level = metered_level(arrival.level << 1);
        if (level < kMeteredLevels) group.mix.count(level, budget);
    }
    if (model.metered) return;
    model.metered = true;
    model.device_ns = 0;
    if (model.component == kNoSlot || rearrange_) return;
    Component& component = components_[model.component];
    component.metered.push_back(request.model);
    component.backlog.recount();
    if (component.tick_at != kNever) return;
    // All components tick together: one wake-up for all of them.
    component.tick_at = (now / RateMeter::kTickNs + 1) * RateMeter::kTickNs;
    ticks_.set({component.tick_at, model.component, model.component});
}

void Core::run_ticks(Nanos now) {
    while (!ticks_.empty() && ticks_.top().at <= now) tick(ticks_.top().slot, now);
}

// A component without arrivals has no further ticks once its rates are forgotten.
void Core::tick(std::uint32_t index, Nanos now) {
    Component& component = components_[index];
    Nanos ticks = 1 + (now - component.tick_at) / RateMeter::kTickNs;
    component.tick_at += ticks * RateMeter::kTickNs;
    ticks = std::min(ticks, kTicksMissedMax);
    std::size_t kept = 0;
    for (const std::uint32_t metered : component.metered) {
        ModelState& model = models_[metered];
        update_reference(model);
        model.device_ns *= std::pow(kDeviceTimeKept, static_cast<double>(ticks));
        bool idle = true;
        for (const std::uint32_t g : model.groups.metered()) {
            Group& group = model.groups[g];
            for (Nanos i = 0; i < ticks && !group.rate.idle(); ++i) group.rate.tick();
            if (group.reserve.executors > 0) reconsider(metered, g);
            group.reserve = Reserve();
            if (group.rate.idle()) {
                group.rate.reset();
                model.groups.unmeter(g);
                set_target(metered, g, 1, 1, 0);
            } else {
                idle = false;
            }
        }
        model.metered = !idle;
        if (idle) model.classes.clear();
        if (!idle) component.metered[kept++] = metered;
    }
    component.metered.resize(kept);
    component.backlog.recount();
    cover_batches(component);
    retarget(component);
    plan_levels(component);
    balance_classes(component);
    yield_levels(component);
    // What had to leave executors to others may not have to any more.
    touch_component(index);
    if (component.metered.empty()) component.tick_at = kNever;
    ticks_.set({component.tick_at, index, index});
}

// Visits what has arrivals, with its latency and its rows a nanosecond.
template <class Visit>
void Core::each_metered(const Component& component, const Visit& visit) {
    for (const std::uint32_t index : component.metered) {
        ModelState& model = models_[index];
        if (model.reference == kNoSlot) continue;
        for (const std::uint32_t g : model.groups.metered()) {
            const Group& group = model.groups[g];
            visit(index, g, planning_latency(model, group), group.rate.per_s() / 1e9);
        }
    }
}

// Finds the largest size of every group. Returns how many executors batches of them keep busy.
double Core::fit_rows(const Component& component, double deviations) {
    double busy = 0;
    each_metered(component, [&](std::uint32_t index, std::uint32_t g, const LatencyModel& latency,
                                double per_ns) {
        ModelState& model = models_[index];
        Group& group = model.groups[g];
        const std::uint32_t risked = rows_risked(model, &group);
        const std::uint32_t most = std::max(latency.largest_within(group.budget_ns, risked), 1u);
        const auto bound = [&](std::uint32_t rows) { return latency.bound(rows); };
        group.rows_fit =
            staggered_rows(latency, bound, group, model.request_rows, deviations, most);
        busy += per_ns * (latency.alpha_ns() + latency.beta_ns() / group.rows_fit);
    });
    return busy;
}

void Core::retarget(Component& component) {
    double capacity = component.slots;
    std::vector<Share> shares;
    const auto each = [&](const auto& visit) { each_metered(component, visit); };
    std::vector<Demand> demands;
    // Sizes that rows do not always fill in time are for a load that they carry and smaller ones
    // do not. Where none carries it, what is waited for in vain costs more than it gains.
    if (fit_rows(component, kGatherDeviations) > capacity && fit_rows(component, 0) > capacity) {
        fit_rows(component, kGatherDeviations);
    }
    each([&](std::uint32_t index, std::uint32_t g, const LatencyModel& latency, double per_ns) {
        ModelState& model = models_[index];
        Group& group = model.groups[g];
        Demand demand;
        demand.model = index;
        demand.budget_ns = static_cast<double>(group.budget_ns);
        demand.rows_busy = per_ns * latency.alpha_ns();
        demand.root = std::sqrt(per_ns * latency.beta_ns());
        demand.rows_fit = group.rows_fit;
        capacity -= demand.rows_busy;
        shares.push_back({demand.root, demand.rows_fit});
        demands.push_back(demand);
    });
    const SoleLoad sole = sole_load(demands);
    const double factor = capacity > 0 ? fitting_factor(shares, capacity) : 0;
    const double less = capacity - std::min(kSpare * component.slots, kSpareMax);
    // Where several compete, others need the executor that one of them would leave idle. Groups of
    // one model are alike: what is spare is there for all of them.
    const bool spares = sole.model != kNoSlot && less > 0;
    const double spare_factor = spares ? fitting_factor(shares, less) : 0;
    auto demand = demands.begin();
    auto share = shares.begin();
    std::uint32_t domain = kNoSlot;
    bool together = true;
    each([&](std::uint32_t index, std::uint32_t g, const LatencyModel& latency, double) {
        const ModelState& model = models_[index];
        const Group& group = model.groups[g];
        if (demand == demands.begin()) domain = model.shared.domain;
        together &= model.shared.domain == domain;
        demand->rows = capacity > 0 ? std::ceil(share->rows(factor)) : share->limit;
        demand->rows_awaited = demand->rows;
        const bool awaits_more = spares && index == sole.model;
        if (awaits_more && demand->rows >= kSpareRowsMin && !covers_wide(model)) {
            demand->rows_awaited = std::max(demand->rows, std::ceil(share->rows(spare_factor)));
        }
        demand->row_ns = static_cast<double>(latency.bound(1));
        const auto rows = static_cast<std::uint32_t>(demand->rows);
        demand->batch_ns = static_cast<double>(latency.bound(rows));
        demand->level = group.mix.lowest();
        ++demand;
        ++share;
    });
    // Executors that only some of them can use are no reserve.
    if (together && domain != kNoSlot) plan_reserves(demands, component.slots);
    demand = demands.begin();
    each([&](std::uint32_t index, std::uint32_t g, const LatencyModel&, double) {
        Group& group = models_[index].groups[g];
        const double gather_ns = kGatherTurns / group.rate.per_s() * 1e9;
        group.reserve = demand->reserve;
        if (group.reserve.executors > 0) reconsider(index, g);
        const double rows = std::max(demand->rows, demand->rows_held);
        const bool alone = &*demand == sole.group;
        set_target(index, g, static_cast<std::uint32_t>(rows), rows_worth_waiting(*demand, alone),
                   static_cast<Nanos>(std::min(gather_ns, kGatherMaxNs)));
        ++demand;
    });
}

// What has to leave executors to others, or had to: it may be held back where it was not, or not
// any more where it was.
void Core::reconsider(std::uint32_t index, std::uint32_t group_index) {
    ModelState& model = models_[index];
    const Group& group = model.groups[group_index];
    if (group.index != Group::Index::kReady) return;
    if (planned(model, group)) mark_stale(model, group_index);
    mark_dirty(index);
}

void Core::set_target(std::uint32_t index, std::uint32_t group_index, std::uint32_t target,
                      std::uint32_t awaited, Nanos gather_ns) {
    ModelState& model = models_[index];
    Group& group = model.groups[group_index];
    const bool sooner =
        target < group.target || awaited < group.awaited || gather_ns < group.gather_ns;
    group.target = target;
    group.awaited = awaited;
    group.gather_ns = gather_ns;
    if (!sooner || group.index != Group::Index::kWaiting || !planned(model, group)) return;
    mark_stale(model, group_index);
    mark_dirty(index);
}

LatencyStatus Core::latency_status(std::uint32_t index, std::uint32_t backend) const {
    LatencyStatus status;
    if (index >= models_.size()) return status;
    const ModelState& model = models_[index];
    const PlacementState* placement = const_cast<ModelState&>(model).placement(backend);
    if (placement == nullptr) return status;
    const LatencyModel& latency = latency_of(model, *placement);
    const LatencyAccuracy accuracy = latency.accuracy();
    status.known = latency.known();
    status.observations = placement->batches_learned;
    status.ignored = placement->ignored_times;
    if (latency.slope_known()) {
        status.alpha_ns = static_cast<Nanos>(latency.alpha_ns());
        status.beta_ns = static_cast<Nanos>(latency.beta_ns());
    }
    status.margin = latency.margin();
    status.error_mean = std::exp(accuracy.log_ratio_mean) - 1;
    if (accuracy.predicted > 0) {
        status.beyond_margin =
            static_cast<double>(accuracy.beyond) / static_cast<double>(accuracy.predicted);
    }
    for (std::uint32_t g = 0; g < model.groups.slots(); ++g) {
        const Group& group = model.groups[g];
        status.rate_per_s += group.rate.per_s();
        if (!group.rate.idle()) status.rows_target = std::max(status.rows_target, group.target);
    }
    for (const LatencySize& size : latency.sizes()) {
        const auto expected = static_cast<std::uint64_t>(latency.expected(size.rows));
        status.sizes.push_back({size.rows, size.observations, expected});
    }
    return status;
}

}  // namespace infersched::engine
