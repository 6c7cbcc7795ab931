#include "simulation/engine_run.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "simulation/engine_loop.h"

namespace infersched::simulation {

namespace {

constexpr std::size_t kClassesMax = 64;
constexpr std::size_t kFaultsMax = 10'000;

std::string problem_of(const ModelSetup& setup, std::size_t devices) {
    for (const engine::Placement& placement : setup.placements) {
        for (const std::uint32_t device : placement.devices) {
            if (device >= devices) return "a placement names devices that are set up";
        }
        if (placement.backend >= engine::kCountersBackendsMax) {
            return "the engine has at most 256 backends";
        }
    }
    if (setup.policy.rows_max < 1 || setup.policy.rows_max > Latency::kRowsMax) {
        return "a batch has 1 to 1024 rows";
    }
    if (setup.placements.empty()) return "a model is placed on a backend";
    if (setup.classes.size() > kClassesMax) return "a model has at most 64 classes";
    double shares = 0;
    for (const RequestClass& kind : setup.classes) {
        if (!std::isfinite(kind.share) || kind.share < 0) return "a share must not be negative";
        if (kind.rows < 1 || kind.rows > Latency::kRowsMax) return "a request has 1 to 1024 rows";
        if (kind.signatures < 1) return "a class has a signature";
        if (kind.objective_ns < 0) return "an objective must not be negative";
        shares += kind.share;
    }
    if (!setup.classes.empty() && !(shares > 0)) return "a model has a class with requests";
    return "";
}

std::string problem_of(const Fault& fault, std::size_t models) {
    if (fault.from_ns < 0 || fault.until_ns < fault.from_ns) return "a fault ends after it began";
    if (!std::isfinite(fault.factor) || fault.factor < 0) return "a factor must not be negative";
    if (fault.kind == FaultKind::kSlow && !(fault.factor >= 1e-3 && fault.factor <= 1e6)) {
        return "an executor is 0.001 to a million times slower";
    }
    if (fault.model >= models) return "a fault names a model";
    return "";
}

// As WorkloadSpec of workload_file.py checks; of jumps at one time those back come first.
bool clock_stays_in_range(std::vector<Fault> faults) {
    std::sort(faults.begin(), faults.end(), [](const Fault& a, const Fault& b) {
        return std::tie(a.from_ns, a.shift_ns) < std::tie(b.from_ns, b.shift_ns);
    });
    Nanos epoch = kEpochNs;
    for (const Fault& fault : faults) {
        if (fault.kind != FaultKind::kClockJump) continue;
        Nanos clock = 0;
        if (__builtin_add_overflow(epoch, fault.shift_ns, &epoch)) return false;
        if (__builtin_add_overflow(epoch, fault.from_ns, &clock)) return false;
        if (clock <= 0 || clock > kClockMaxNs) return false;
    }
    return true;
}

// The scenario's executors are backends; what makes them slower is in their executions already.
EngineSettings with_troubles(const Scenario& scenario, const EngineSettings& settings) {
    EngineSettings all = settings;
    for (std::uint32_t e = 0; e < scenario.setups.size(); ++e) {
        Fault fault;
        fault.backend = e;
        fault.kind = FaultKind::kDown;
        for (const Trouble& trouble : scenario.setups[e].troubles) {
            if (trouble.factor > 0) continue;
            fault.from_ns = trouble.from_ns;
            fault.until_ns = trouble.until_ns;
            all.faults.push_back(fault);
        }
        if (scenario.setups[e].failing <= 0) continue;
        fault.kind = FaultKind::kFailing;
        fault.from_ns = 0;
        fault.until_ns = kNever;
        fault.factor = scenario.setups[e].failing;
        fault.failure = engine::FailureKind::kFinal;
        all.faults.push_back(fault);
    }
    return all;
}

}  // namespace

std::vector<ModelSetup> setups_of(const Scenario& scenario, const EngineSettings& settings) {
    std::vector<ModelSetup> setups = settings.models;
    setups.resize(scenario.models.size());
    for (std::size_t m = settings.models.size(); m < setups.size(); ++m) {
        setups[m].policy.in_use = true;
        setups[m].policy.rows_max = settings.rows_max;
        setups[m].policy.slo_ns = scenario.models[m].objective_ns;
        for (std::uint32_t e = 0; e < scenario.executors; ++e) {
            if (!holds(scenario, e, static_cast<std::uint32_t>(m))) continue;
            engine::Placement placement;
            placement.backend = e;
            placement.ready = true;
            if (setups.size() > 1) placement.executor_group = e;
            setups[m].placements.push_back(placement);
        }
    }
    for (ModelSetup& setup : setups) {
        if (setup.classes.empty()) setup.classes.emplace_back();
    }
    return setups;
}

std::string problem_of(const Scenario& scenario, const EngineSettings& settings) {
    std::string problem = problem_of(scenario);
    if (!problem.empty()) return problem;
    if (scenario.models.size() > engine::kModelsMax) {
        return "the engine has at most 65536 models";
    }
    if (!settings.models.empty() && settings.models.size() != scenario.models.size()) {
        return "every model is set up, or none";
    }
    for (const double speed : settings.speeds) {
        if (!std::isfinite(speed) || speed <= 0) return "a speed must be positive";
    }
    for (const double weight : settings.tenants) {
        if (!std::isfinite(weight) || weight <= 0) return "a weight must be positive";
    }
    if (!std::isfinite(settings.drift_per_s) || settings.drift_per_s < 0) {
        return "a drift must not be negative";
    }
    if (settings.wire_ns < 0) return "a wire takes no negative time";
    for (const DeviceSetup& device : settings.devices) {
        if (device.poll_ns < 0) return "readings take no negative time";
    }
    if (settings.faults.size() > kFaultsMax) return "there are at most 10000 faults";
    for (const Fault& fault : settings.faults) {
        problem = problem_of(fault, scenario.models.size());
        if (!problem.empty()) return problem;
    }
    if (!clock_stays_in_range(settings.faults)) {
        return "jumps leave the clock, which begins at 1000 s, above 0 and at most at 9e9 s";
    }
    for (const ModelSetup& setup : setups_of(scenario, settings)) {
        problem = problem_of(setup, settings.devices.size());
        if (!problem.empty()) return problem;
    }
    return "";
}

EngineMetrics simulate_engine(const Scenario& scenario, const EngineSettings& settings) {
    const EngineSettings all = with_troubles(scenario, settings);
    return EngineLoop(scenario, all).run();
}

}  // namespace infersched::simulation
