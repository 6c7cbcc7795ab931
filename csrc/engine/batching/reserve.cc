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
// Every one is compared with every other.
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

// What the others need, or of too few executors their part.
std::uint32_t left_to(const Part& others, const Part& slow, std::uint32_t executors) {
    const double wanted = others.executors();
    const double whole = std::ceil(wanted);
    if (whole + slow.executors() <= executors) return static_cast<std::uint32_t>(whole);
    const double part = std::round(executors * wanted / (wanted + slow.executors()));
    return static_cast<std::uint32_t>(std::min(part, executors - 1.0));
}

void plan_reserve(std::vector<Demand>& demands, const Demand& tight, std::uint32_t executors) {
    Part slow;
    Part others;
    for (const Demand& demand : demands) (yields(demand, tight) ? slow : others).add(demand);
    const std::uint32_t left = left_to(others, slow, executors);
    const double capacity = executors - left - slow.rows_busy;
    for (Demand& demand : demands) {
        if (left <= demand.reserve.executors || !yields(demand, tight)) continue;
        demand.reserve = {left, tight.level};
        demand.rows_held = demand.rows_fit;
        if (capacity <= 0) continue;
        const double even = std::ceil(demand.root * slow.roots / capacity);
        demand.rows_held = std::min(even, demand.rows_fit);
    }
}

}  // namespace

void plan_reserves(std::vector<Demand>& demands, std::uint32_t executors) {
    if (executors < 2 || demands.size() > kDemandsMax) return;
    double longest = 0;
    for (const Demand& demand : demands) longest = std::max(longest, demand.row_ns);
    for (const Demand& tight : demands) {
        const bool waits_long = longest > tight.budget_ns - tight.batch_ns;
        if (waits_long) plan_reserve(demands, tight, executors);
    }
}

}  // namespace infersched::engine
