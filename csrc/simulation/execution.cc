#include "simulation/execution.h"

#include <algorithm>
#include <cmath>

namespace infersched::simulation {

Nanos execution_ns(const Latency& latency, std::size_t rows, double sigma, Random& random,
                   double slowdown) {
    Nanos holds = latency.at(rows);
    if (slowdown != 1) holds = static_cast<Nanos>(static_cast<double>(holds) * slowdown);
    if (sigma > 0) {
        holds = static_cast<Nanos>(static_cast<double>(holds) * std::exp(sigma * random.normal()));
    }
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
