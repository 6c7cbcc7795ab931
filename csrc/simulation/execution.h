// How long one batch takes on an executor: l(b) and chance.
#pragma once

#include <cstddef>

#include "base/time.h"
#include "simulation/latency.h"
#include "simulation/random.h"

namespace infersched::simulation {

// The chance of executions is apart from that of arrivals, whose seeds count up from the
// scenario's.
inline constexpr std::uint64_t kNoiseStream = 0x6e6f697365000000u;

// l(rows) * exp(sigma * z), z normal; at least 1 ns.
Nanos execution_ns(const Latency& latency, std::size_t rows, double sigma, Random& random);

}  // namespace infersched::simulation
