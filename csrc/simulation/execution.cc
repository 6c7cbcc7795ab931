#include "simulation/execution.h"

#include <algorithm>
#include <cmath>

namespace infersched::simulation {

Nanos execution_ns(const Latency& latency, std::size_t rows, double sigma, Random& random) {
    Nanos holds = latency.at(rows);
    if (sigma > 0) {
        holds = static_cast<Nanos>(static_cast<double>(holds) * std::exp(sigma * random.normal()));
    }
    return std::max<Nanos>(holds, 1);
}

}  // namespace infersched::simulation
