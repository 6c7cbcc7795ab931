// How long one batch takes on an executor: l(b) and chance.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/time.h"
#include "simulation/random.h"
#include "simulation/scenario.h"

namespace infersched::simulation {

// The chance of executions is apart from that of arrivals, whose seeds count up from the
// scenario's.
inline constexpr std::uint64_t kNoiseStream = 0x6e6f697365000000u;

// l(rows) * slowdown * exp(noise_sigma * z), z normal, and of the part that straggles five times
// that; at least 1 ns.
Nanos execution_ns(const Scenario& scenario, std::uint32_t model, std::size_t rows, Random& random,
                   double slowdown);

// How many times l(b) a batch takes that starts now, chance aside: the executor's speed, its
// trouble and the drift. Being down is not slowness.
double slowdown(const Scenario& scenario, std::uint32_t executor, Nanos now);

}  // namespace infersched::simulation
