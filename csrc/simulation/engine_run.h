// Runs one scenario under the engine itself: the compiled engine of the server, driven by simulated
// events. It is told what a server is told, and learns the rest: rates and latencies are not given.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulation/engine_settings.h"
#include "simulation/histogram.h"
#include "simulation/scenario.h"

namespace infersched::simulation {

// Counted requests: offered is the sum of the others.
struct ClassMetrics {
    std::uint64_t offered = 0;
    std::uint64_t in_time = 0;  // without an objective: answered at all
    std::uint64_t late = 0;     // or expired while it ran, or unanswered at its deadline
    std::uint64_t refused = 0;
    std::uint64_t expired = 0;  // in the queue
    std::uint64_t failed = 0;
    std::uint64_t cancelled = 0;
    std::uint64_t unanswered = 0;  // at the end, without a deadline
};

enum class Fate : std::uint8_t {
    kUncounted,
    kInTime,
    kLate,
    kRefused,
    kExpired,
    kFailed,
    kLeft,
    kUnanswered
};

struct EngineMetrics {
    // As the reference policies count: refused, expired and failed requests are dropped, cancelled
    // ones and those that nothing had to answer by the end were not offered.
    Metrics totals;
    std::vector<std::vector<ClassMetrics>> classes;  // by model and class
    Histogram waits;      // of answered counted requests: arrival to answer without the execution
    Histogram latencies;  // arrival to answer
    std::vector<Fate> fates;         // by the order of arrival, warm-up included
    std::vector<Nanos> arrivals_ns;  // as fates
    std::uint64_t faults_begun = 0;
    std::uint64_t steps = 0;
    std::uint64_t failed_batches = 0;
    std::uint64_t cancels = 0;
    // Requests that were failed for device memory; of these, those that would have found room.
    std::uint64_t memory_failures = 0;
    std::uint64_t memory_failures_fitting = 0;
    std::vector<engine::MemoryStatus> memory;  // in the end, by model and device
    std::string broken;                        // the first truth that did not hold
};

// Deterministic, and comparable with the reference policies: the same scenario has the same
// arrivals.
EngineMetrics simulate_engine(const Scenario& scenario, const EngineSettings& settings);

// What makes a scenario impossible to run under the engine, in words; empty when it can be.
std::string problem_of(const Scenario& scenario, const EngineSettings& settings);

// What each model is configured to: the settings', or one made of the scenario.
std::vector<ModelSetup> setups_of(const Scenario& scenario, const EngineSettings& settings);

}  // namespace infersched::simulation
