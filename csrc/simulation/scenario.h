// What one run simulates, and what it counted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/time.h"
#include "simulation/arrivals.h"
#include "simulation/latency.h"

namespace infersched::simulation {

struct Model {
    Latency latency;
    Nanos objective_ns = 0;  // from arrival to the end of the batch
    ArrivalPlan arrivals;
};

// While it lasts, batches that start take `factor` times as long. 0: the executor is down; what it
// runs and what is staged there is lost.
struct Trouble {
    Nanos from_ns = 0;
    Nanos until_ns = 0;
    double factor = 1;
};

struct ExecutorSetup {
    bool holds_all = true;
    std::vector<std::uint32_t> models;  // that it holds, where not all
    double speed = 1;                   // batches take 1/speed as long
    double failing = 0;                 // the part of its batches that ends without an answer
    std::vector<Trouble> troubles;      // ascending, apart
};

struct Scenario {
    std::vector<Model> models;
    std::uint32_t executors = 1;  // each runs one batch at a time
    // Of the first executors; the others hold every model, at speed 1 and without trouble.
    std::vector<ExecutorSetup> setups;
    // Each batch takes l(b) * exp(noise_sigma * z), z normal: the median stays l(b).
    double noise_sigma = 0;
    double straggling = 0;  // the part of batches that take five times as long
    // Batches that start at t take 1 + drift_per_s * t as long.
    double drift_per_s = 0;
    std::uint64_t seed = 1;
    Nanos warm_up_ns = 2 * kSecond;         // requests that arrive before it are not counted
    std::uint64_t requests = 100'000;       // counted, over all models
    std::uint64_t misses_max = UINT64_MAX;  // the run stops after more misses than this
    Nanos interval_ns = 0;                  // of Metrics::intervals; 0: none
};

// Of the arrivals of one model, whatever policy serves them.
inline std::uint64_t arrival_seed(const Scenario& scenario, std::size_t model) {
    return scenario.seed * 1'000'003u + model;
}

// What makes a scenario impossible to run, in words; empty when it can be.
std::string problem_of(const Scenario& scenario);

// Whether the executor may run batches of the model.
bool holds(const Scenario& scenario, std::uint32_t executor, std::uint32_t model);

// Requests that were counted: offered = in_time + late + dropped. What is lost with its executor or
// its batch is late, as is what is unanswered at the end of the run, its deadline behind it.
struct ModelMetrics {
    std::uint64_t offered = 0;
    std::uint64_t in_time = 0;
    std::uint64_t late = 0;
    std::uint64_t dropped = 0;
    std::uint64_t batches = 0;       // started after the warm-up
    std::uint64_t batched_rows = 0;  // in them
    double mean_batch() const {
        return batches == 0 ? 0 : static_cast<double>(batched_rows) / static_cast<double>(batches);
    }
};

// Requests by the time of their arrival, without those that their clients cancelled and those that
// nothing had to answer by the end.
struct Interval {
    std::uint64_t offered = 0;
    std::uint64_t in_time = 0;
};

struct Metrics {
    std::vector<ModelMetrics> models;
    std::vector<Interval> intervals;  // from the start on, warm-up included
    Nanos ended_ns = 0;
    std::uint64_t preempted = 0;  // batches
    std::uint64_t arrived = 0;    // warm-up included
    bool stopped_early = false;   // more than misses_max

    // What comes after the last counted one may be open when the run ends.
    void count(const Scenario& scenario, Nanos arrived_ns, bool counted,
               std::uint64_t Interval::*as, std::int64_t by = 1) {
        if (scenario.interval_ns <= 0) return;
        if (!counted && arrived_ns >= scenario.warm_up_ns) return;
        const auto at = static_cast<std::size_t>(arrived_ns / scenario.interval_ns);
        if (at >= intervals.size()) intervals.resize(at + 1);
        intervals[at].*as += static_cast<std::uint64_t>(by);
    }
};

}  // namespace infersched::simulation
