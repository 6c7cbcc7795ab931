#include "simulation/policies/nexus_plan.h"

#include <algorithm>
#include <cmath>

namespace infersched::simulation {

namespace {

// From the largest to the smallest multiple of the rates that is tried. A larger one may fit where
// a smaller one does not: what is left of a rate can be too much for one executor.
constexpr double kStep = 1.005;
constexpr double kRange = 1000;

bool held(const Cluster& cluster, std::uint32_t model) {
    std::uint32_t executor = 0;
    while (executor < cluster.executors() && !cluster.holds(executor, model)) ++executor;
    return executor < cluster.executors();
}

// The largest batch that leaves time for one more before it, and the rate that keeps an executor
// busy with them.
NexusShare saturated(const Cluster& cluster, std::uint32_t model) {
    const Latency& latency = cluster.latency(model);
    const std::size_t within = latency.rows_within(cluster.objective_ns(model) / 2);
    const std::size_t rows = std::max<std::size_t>(within, 1);
    return {model, rows, static_cast<double>(rows) / static_cast<double>(latency.at(rows))};
}

// A part of a model's rate that does not saturate an executor.
struct Residual {
    NexusPlan plan;  // of an executor with nothing else
    std::uint32_t model = 0;
};

// Squishy bin packing at one multiple of the rates.
class Packing {
  public:
    Packing(const Cluster& cluster, double scale)
        : cluster_(cluster), scale_(scale), plans_(cluster.executors()) {}
    // Whether everything fits.
    bool pack();
    // What did not, onto the least occupied executors that hold it.
    void force();
    std::vector<NexusPlan> take() { return std::move(plans_); }

  private:
    double holds_ns(std::uint32_t model, std::size_t rows) const {
        return static_cast<double>(cluster_.latency(model).at(rows));
    }
    void divide(std::uint32_t model);
    NexusPlan lone(std::uint32_t model, double rate, std::size_t rows) const;
    // `into` with the shares of `other`; occupancy above 1 when it does not fit.
    NexusPlan merged(const NexusPlan& into, const NexusPlan& other) const;
    bool place(const Residual& residual);
    // On an unused executor that holds the model; false: there is none.
    bool open(std::uint32_t model, const NexusPlan& plan);

    const Cluster& cluster_;
    double scale_;
    std::vector<NexusPlan> plans_;  // by executor
    std::vector<Residual> residuals_;
    std::vector<Residual> left_;
};

bool Packing::pack() {
    for (std::uint32_t m = 0; m < cluster_.models(); ++m) {
        if (held(cluster_, m)) divide(m);
    }
    std::stable_sort(residuals_.begin(), residuals_.end(), [](const auto& a, const auto& b) {
        return a.plan.occupancy > b.plan.occupancy;
    });
    for (const Residual& residual : residuals_) {
        if (residual.plan.occupancy > 1 || !place(residual)) left_.push_back(residual);
    }
    return left_.empty();
}

void Packing::divide(std::uint32_t model) {
    const NexusShare share = saturated(cluster_, model);
    const NexusPlan whole{{share}, holds_ns(model, share.rows), 1};
    double rate = scale_ * cluster_.scenario().models[model].arrivals.mean_per_s() / 1e9;
    for (; rate >= share.rate_per_ns; rate -= share.rate_per_ns) {
        if (open(model, whole)) continue;
        left_.push_back({whole, model});
        return;
    }
    if (rate > 0) residuals_.push_back({lone(model, rate, share.rows), model});
}

NexusPlan Packing::lone(std::uint32_t model, double rate, std::size_t rows) const {
    const auto objective = static_cast<double>(cluster_.objective_ns(model));
    const auto late = [&](std::size_t b) {
        return holds_ns(model, b) + static_cast<double>(b) / rate > objective;
    };
    while (rows > 1 && late(rows)) --rows;
    const double holds = holds_ns(model, rows);
    const double cycle = std::min(static_cast<double>(rows) / rate, objective - holds);
    return {{{model, rows, rate}}, std::max(cycle, 1.0), holds / std::max(cycle, 1.0)};
}

NexusPlan Packing::merged(const NexusPlan& into, const NexusPlan& other) const {
    if (into.shares.empty()) return other;
    NexusPlan both = into;
    both.shares.insert(both.shares.end(), other.shares.begin(), other.shares.end());
    both.cycle_ns = std::min(into.cycle_ns, other.cycle_ns);
    double busy = 0;
    for (NexusShare& share : both.shares) {
        const double rows = std::ceil(both.cycle_ns * share.rate_per_ns);
        const auto limit = static_cast<double>(cluster_.latency(share.model).rows_max());
        share.rows = static_cast<std::size_t>(std::clamp(rows, 1.0, limit));
        busy += holds_ns(share.model, share.rows);
    }
    both.occupancy = busy / both.cycle_ns;
    return both;
}

bool Packing::place(const Residual& residual) {
    NexusPlan* best = nullptr;
    NexusPlan best_merged;
    for (std::uint32_t e = 0; e < plans_.size(); ++e) {
        if (plans_[e].shares.empty() || !cluster_.holds(e, residual.model)) continue;
        if (plans_[e].occupancy >= 1) continue;
        NexusPlan candidate = merged(plans_[e], residual.plan);
        if (candidate.occupancy > 1) continue;
        if (best != nullptr && candidate.occupancy <= best_merged.occupancy) continue;
        best = &plans_[e];
        best_merged = std::move(candidate);
    }
    if (best == nullptr) return open(residual.model, residual.plan);
    *best = std::move(best_merged);
    return true;
}

bool Packing::open(std::uint32_t model, const NexusPlan& plan) {
    for (std::uint32_t e = 0; e < plans_.size(); ++e) {
        if (!plans_[e].shares.empty() || !cluster_.holds(e, model)) continue;
        plans_[e] = plan;
        return true;
    }
    return false;
}

void Packing::force() {
    for (const Residual& residual : left_) {
        NexusPlan* freest = nullptr;
        for (std::uint32_t e = 0; e < plans_.size(); ++e) {
            if (!cluster_.holds(e, residual.model)) continue;
            if (freest == nullptr || plans_[e].occupancy < freest->occupancy) freest = &plans_[e];
        }
        if (freest != nullptr) *freest = merged(*freest, residual.plan);
    }
}

}  // namespace

std::vector<NexusPlan> nexus_plan(const Cluster& cluster) {
    double executors = 0;  // that the mean rates would saturate
    for (std::uint32_t m = 0; m < cluster.models(); ++m) {
        const double rate = cluster.scenario().models[m].arrivals.mean_per_s() / 1e9;
        executors += rate / saturated(cluster, m).rate_per_ns;
    }
    if (executors <= 0) return std::vector<NexusPlan>(cluster.executors());
    const double most = cluster.executors() / executors;
    for (double scale = most; scale > most / kRange; scale /= kStep) {
        Packing packing(cluster, scale);
        if (packing.pack()) return packing.take();
    }
    Packing packing(cluster, most / kRange);
    if (!packing.pack()) packing.force();
    return packing.take();
}

}  // namespace infersched::simulation
