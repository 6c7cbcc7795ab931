// Runs one scenario under the engine itself: the compiled engine of the server, driven by simulated
// events. It is told what a server is told, and learns the rest: rates and latencies are not given.
#pragma once

#include <cstdint>

#include "simulation/scenario.h"

namespace infersched::simulation {

struct EngineSettings {
    std::uint32_t rows_max = 128;  // of every model, as Triton's max_batch_size
    // After every event; slow.
    bool check_invariants = false;
};

// Deterministic, and comparable with the reference policies: the same scenario has the same
// arrivals. Every executor is a backend with one instance of each model, which exclude each other.
// What the engine refused or let expire in its queue counts as dropped.
Metrics simulate_engine(const Scenario& scenario, const EngineSettings& settings);

// What makes a scenario impossible to run under the engine, in words; empty when it can be.
std::string problem_of(const Scenario& scenario, const EngineSettings& settings);

}  // namespace infersched::simulation
