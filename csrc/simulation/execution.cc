#include "simulation/execution.h"

#include <algorithm>
#include <cmath>

namespace infersched::simulation {
namespace {

constexpr double kStragglerTimes = 5;

}  // namespace

Nanos execution_ns(const Scenario& scenario, std::uint32_t model, std::size_t rows, Random& random,
                   double slowdown) {
    const double sigma = scenario.noise_sigma;
    double factor = slowdown;
    if (sigma > 0) factor *= std::exp(sigma * random.normal());
    if (scenario.straggling > 0 && random.unit() <= scenario.straggling) factor *= kStragglerTimes;
    Nanos holds = scenario.models[model].latency.at(rows);
    if (factor != 1) holds = static_cast<Nanos>(static_cast<double>(holds) * factor);
    return std::max<Nanos>(holds, 1);
}

double slowdown(const Scenario& scenario, std::uint32_t executor, Nanos now) {
    double factor = 1 + scenario.drift_per_s * static_cast<double>(now) / 1e9;
    if (executor >= scenario.setups.size()) return factor;
    const ExecutorSetup& setup = scenario.setups[executor];
    for (const Trouble& trouble : setup.troubles) {
        const bool on = trouble.from_ns <= now && now < trouble.until_ns;
        if (on && trouble.factor > 0) factor *= trouble.factor;
    }
    return factor / setup.speed;
}

}  // namespace infersched::simulation
