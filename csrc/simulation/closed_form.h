// Goodput that needs no simulation: one model, Poisson or not, nothing left to chance.
#pragma once

#include <cstdint>

#include "base/time.h"
#include "simulation/latency.h"

namespace infersched::simulation {

// N executors that start one after the other at equal distances, each with the largest batch b
// that still answers its first request in time: l(b) * (1 + 1/N) <= objective. Requests/s,
// N*b/l(b); 0 when not even one row is in time.
double staggered_bound_per_s(const Latency& latency, Nanos objective_ns, std::uint32_t executors);

// The same for executors that do not know of each other: a request may wait for one whole batch
// before its own, 2 * l(b) <= objective.
double uncoordinated_per_s(const Latency& latency, Nanos objective_ns, std::uint32_t executors);

}  // namespace infersched::simulation
