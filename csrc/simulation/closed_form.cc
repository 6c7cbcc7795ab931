#include "simulation/closed_form.h"

#include <cstddef>

namespace infersched::simulation {

namespace {

double throughput_per_s(const Latency& latency, std::size_t rows, std::uint32_t executors) {
    if (rows == 0) return 0;
    const double batch_s = static_cast<double>(latency.at(rows)) / 1e9;
    return executors * static_cast<double>(rows) / batch_s;
}

}  // namespace

double staggered_bound_per_s(const Latency& latency, Nanos objective_ns, std::uint32_t executors) {
    const double share = static_cast<double>(executors) / (executors + 1.0);
    const auto budget = static_cast<Nanos>(static_cast<double>(objective_ns) * share);
    return throughput_per_s(latency, latency.rows_within(budget), executors);
}

double uncoordinated_per_s(const Latency& latency, Nanos objective_ns, std::uint32_t executors) {
    return throughput_per_s(latency, latency.rows_within(objective_ns / 2), executors);
}

}  // namespace infersched::simulation
