#include "simulation/scenario.h"

#include <algorithm>
#include <cmath>

namespace infersched::simulation {

namespace {

constexpr Nanos kLongestNs = 1'000'000 * kSecond;
constexpr std::uint32_t kExecutorsMax = 4096;

bool usable(double value) { return std::isfinite(value) && value >= 0; }

std::string problem_of(const ArrivalPlan& plan) {
    if (!usable(plan.rate_per_s)) return "a rate must not be negative";
    if (!std::isfinite(plan.shape) || plan.shape < 0.001) return "a shape must be at least 0.001";
    if (plan.on_mean_ns <= 0 || plan.off_mean_ns < 0) return "an on phase must take time";
    if (plan.step_ns <= 0) return "a step of a rate series must take time";
    if (!std::all_of(plan.rates_per_s.begin(), plan.rates_per_s.end(), usable)) {
        return "a rate must not be negative";
    }
    const std::vector<Nanos>& times = plan.times_ns;
    if (!std::is_sorted(times.begin(), times.end())) return "recorded times must ascend";
    if (!times.empty() && times.front() < 0) return "recorded times must not be negative";
    return "";
}

std::string problem_of(const ExecutorSetup& setup, std::size_t models) {
    if (!std::isfinite(setup.speed) || setup.speed < 0.001 || setup.speed > 1000) {
        return "a speed must be from 0.001 to 1000";
    }
    if (!usable(setup.failing) || setup.failing > 1) {
        return "the part of batches that fails must be from 0 to 1";
    }
    for (const std::uint32_t model : setup.models) {
        if (model >= models) return "an executor holds a model that there is not";
    }
    Nanos over = 0;
    for (const Trouble& trouble : setup.troubles) {
        if (trouble.from_ns < over || trouble.until_ns <= trouble.from_ns) {
            return "troubles must ascend and take time";
        }
        over = trouble.until_ns;
        if (!usable(trouble.factor) || trouble.factor > 1000) {
            return "the factor of a trouble must be from 0 to 1000";
        }
    }
    return "";
}

std::string problem_of(const Model& model) {
    const Latency& latency = model.latency;
    if (latency.empty() || latency.at(1) < 1) return "a batch must take time";
    if (latency.at(Latency::kRowsMax) > kLongestNs) return "a batch takes longer than is simulated";
    if (model.objective_ns < 1) return "an objective must be positive";
    if (model.objective_ns > kLongestNs) return "an objective is longer than is simulated";
    return problem_of(model.arrivals);
}

}  // namespace

bool holds(const Scenario& scenario, std::uint32_t executor, std::uint32_t model) {
    if (executor >= scenario.setups.size()) return true;
    if (scenario.setups[executor].holds_all) return true;
    const std::vector<std::uint32_t>& held = scenario.setups[executor].models;
    return std::find(held.begin(), held.end(), model) != held.end();
}

std::string problem_of(const Scenario& scenario) {
    if (scenario.models.empty()) return "there must be a model";
    if (scenario.executors < 1 || scenario.executors > kExecutorsMax) {
        return "there must be 1 to 4096 executors";
    }
    if (!usable(scenario.noise_sigma) || scenario.noise_sigma > 3) {
        return "noise must be from 0 to 3";
    }
    if (!usable(scenario.straggling) || scenario.straggling > 1) {
        return "the part of batches that straggle must be from 0 to 1";
    }
    if (!usable(scenario.drift_per_s) || scenario.drift_per_s > 1000) {
        return "a drift must be from 0 to 1000 a second";
    }
    if (scenario.setups.size() > scenario.executors) return "there are more setups than executors";
    for (const ExecutorSetup& setup : scenario.setups) {
        const std::string problem = problem_of(setup, scenario.models.size());
        if (!problem.empty()) return problem;
    }
    if (scenario.warm_up_ns < 0) return "a warm-up must not be negative";
    if (scenario.interval_ns != 0 && scenario.interval_ns < kMillisecond) {
        return "an interval must be at least 1 ms";
    }
    if (scenario.requests < 1) return "there must be a request to count";
    for (const Model& model : scenario.models) {
        const std::string problem = problem_of(model);
        if (!problem.empty()) return problem;
    }
    return "";
}

}  // namespace infersched::simulation
