#include "engine/batching/reserve.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

// What is held back can wait so many times as long as that for which it is.
constexpr double kPatience = 2;
// Standard deviations of the executors busy at once for which there is to be room where nothing can
// wait. Where what waits can go with the next batch, less will do.
constexpr double kDeviations = 2;
// Executors busy on average with what no executor is held back for: it would stand idle for the
// sake of next to nothing.
constexpr double kBusyMin = 0.02;
// Part of what slow ones need that they may be short of where all have room.
constexpr double kShortMax = 0.1;
// Every one is compared with every other: the largest ones.
constexpr std::size_t kDemandsMax = 128;

// Whether what comes for `tight` while `slow` holds the last executor is late for it.
bool yields(const Demand& slow, const Demand& tight) {
    const bool late = slow.row_ns > tight.budget_ns - tight.batch_ns;
    return late && slow.patience_ns() > kPatience * tight.patience_ns();
}

// Groups that share executors.
struct Part {
    double rows_busy = 0;
    double roots = 0;
    double busy = 0;
    double variance = 0;

    void add(const Demand& demand) {
        const double deviations = kDeviations * std::min(demand.row_ns / demand.budget_ns, 1.0);
        rows_busy += demand.rows_busy;
        roots += demand.root;
        busy += demand.busy();
        variance += deviations * deviations * demand.busy();
    }
    double executors() const { return busy + std::sqrt(variance); }
};

// What the others need, but no more than is spare where all have room; of too few executors their
// part.
std::uint32_t left_to(const Part& others, const Part& slow, std::uint32_t executors) {
    const double wanted = others.executors();
    double left = std::ceil(wanted);
    if (others.busy + slow.busy > executors) {
        left = std::round(executors * wanted / (wanted + slow.executors()));
    } else if (left + slow.executors() > executors) {
        const double spare = std::floor(executors - slow.busy);
        // One more if the slow ones lose little by it, and less than the others would without.
        const double others_short = (others.busy - spare) / others.busy;
        const double slow_short = (spare + 1 - (executors - slow.busy)) / slow.busy;
        const bool more = slow_short < std::min(others_short, kShortMax);
        left = std::min(left, more ? spare + 1 : spare);
    }
    return static_cast<std::uint32_t>(std::min(left, executors - 1.0));
}

// Whether it may have to leave more than it does so far, or as much for this level or a lower one.
bool leaves_as_much(const Demand& demand, const Demand& tight, std::uint32_t left) {
    const Reserve& known = demand.reserve;
    if (left == 0 || demand.level < tight.level || left < known.executors) return false;
    return left > known.executors || tight.level <= known.level;
}

void plan_reserve(const std::vector<Demand*>& demands, const Demand& tight,
                  std::uint32_t executors) {
    Part slow;
    Part others;
    for (const Demand* demand : demands) {
        if (yields(*demand, tight)) {
            slow.add(*demand);
        } else if (demand->level <= tight.level) {
            others.add(*demand);
        }
    }
    const std::uint32_t left = left_to(others, slow, executors);
    const double capacity = executors - left - slow.rows_busy;
    for (Demand* slow_demand : demands) {
        Demand& demand = *slow_demand;
        if (!yields(demand, tight) || !leaves_as_much(demand, tight, left)) continue;
        const Reserve& known = demand.reserve;
        const bool same = left == known.executors && tight.level == known.level;
        double rows = demand.rows_fit;
        if (capacity > 0) {
            rows = std::min(std::ceil(demand.root * slow.roots / capacity), demand.rows_fit);
        }
        // Of several for which it leaves the same, in whatever order they come.
        demand.rows_held = same ? std::max(demand.rows_held, rows) : rows;
        demand.reserve = {left, tight.level};
    }
}

}  // namespace

void plan_reserves(std::vector<Demand>& demands, std::uint32_t executors) {
    if (executors < 2) return;
    std::vector<Demand*> largest;
    for (Demand& demand : demands) largest.push_back(&demand);
    if (largest.size() > kDemandsMax) {
        const auto end = largest.begin() + kDemandsMax;
        std::nth_element(largest.begin(), end, largest.end(),
                         [](const Demand* a, const Demand* b) { return a->busy() > b->busy(); });
        largest.erase(end, largest.end());
    }
    double longest = 0;
    for (const Demand* demand : largest) longest = std::max(longest, demand->row_ns);
    for (const Demand* tight : largest) {
        const bool waits_long = longest > tight->budget_ns - tight->batch_ns;
        if (waits_long && tight->busy() >= kBusyMin) plan_reserve(largest, *tight, executors);
    }
}

}  // namespace infersched::engine
