// Nexus (Shen et al. 2019): a plan for the mean rates says which executor serves which models with
// which batch; executors cycle through theirs.
//
// Squishy bin packing: each model gets as many whole executors as it saturates with the largest b
// with 2 * l(b) <= objective; what is left of its rate is packed with that of others into cycles
// short enough for all of them, best fit, the fullest first.

#include <algorithm>
#include <cmath>

#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

struct Share {
    std::uint32_t model = 0;
    std::size_t rows = 1;    // planned batch
    double rate_per_ns = 0;  // of the model that this executor is to serve
};

struct Plan {
    std::vector<Share> shares;
    double cycle_ns = 0;
    double occupancy = 0;  // busy part of the cycle
};

class Packing {
  public:
    explicit Packing(const Cluster& cluster) : cluster_(cluster) {}
    std::vector<Plan> plan();

  private:
    double holds_ns(std::uint32_t model, std::size_t rows) const;
    void saturate(std::uint32_t model, std::vector<Plan>* residuals);
    // `into` with the shares of `other`; occupancy above 1 when it does not fit.
    Plan merged(const Plan& into, const Plan& other) const;
    void pack(const Plan& residual, std::vector<Plan>* packed) const;
    // What needs more executors than there are is laid on the least occupied ones.
    void fit();
    // Executors that the plan has no need of do the same as the first ones.
    void replicate();

    const Cluster& cluster_;
    std::vector<Plan> plans_;
};

std::vector<Plan> Packing::plan() {
    std::vector<Plan> residuals;
    for (std::uint32_t m = 0; m < cluster_.models(); ++m) saturate(m, &residuals);
    const auto fuller = [](const Plan& a, const Plan& b) { return a.occupancy > b.occupancy; };
    std::stable_sort(residuals.begin(), residuals.end(), fuller);
    std::vector<Plan> packed;
    for (const Plan& residual : residuals) pack(residual, &packed);
    std::stable_sort(packed.begin(), packed.end(), fuller);
    plans_.insert(plans_.end(), packed.begin(), packed.end());
    fit();
    replicate();
    return std::move(plans_);
}

double Packing::holds_ns(std::uint32_t model, std::size_t rows) const {
    return static_cast<double>(cluster_.latency(model).at(rows));
}

void Packing::saturate(std::uint32_t model, std::vector<Plan>* residuals) {
    const Nanos objective = cluster_.objective_ns(model);
    const Latency& latency = cluster_.latency(model);
    const std::size_t rows = std::max<std::size_t>(latency.rows_within(objective / 2), 1);
    const double holds = holds_ns(model, rows);
    const double each = static_cast<double>(rows) / holds;
    double rate = cluster_.scenario().models[model].arrivals.mean_per_s() / 1e9;
    for (; rate >= each; rate -= each) plans_.push_back({{{model, rows, each}}, holds, 1});
    if (rate <= 0) return;
    std::size_t fits = rows;
    const auto late = [&](std::size_t b) {
        const double waits = static_cast<double>(b) / rate;
        return holds_ns(model, b) + waits > static_cast<double>(objective);
    };
    while (fits > 1 && late(fits)) --fits;
    const double longest = static_cast<double>(objective) - holds_ns(model, fits);
    const double cycle = std::min(static_cast<double>(fits) / rate, longest);
    residuals->push_back({{{model, fits, rate}}, cycle, holds_ns(model, fits) / cycle});
}

Plan Packing::merged(const Plan& into, const Plan& other) const {
    Plan both = into;
    both.shares.insert(both.shares.end(), other.shares.begin(), other.shares.end());
    both.cycle_ns = std::min(into.cycle_ns, other.cycle_ns);
    double busy = 0;
    for (Share& share : both.shares) {
        const double rows = std::ceil(both.cycle_ns * share.rate_per_ns);
        share.rows = static_cast<std::size_t>(std::max(rows, 1.0));
        busy += holds_ns(share.model, share.rows);
    }
    both.occupancy = busy / both.cycle_ns;
    return both;
}

void Packing::pack(const Plan& residual, std::vector<Plan>* packed) const {
    Plan* best = nullptr;
    Plan best_merged;
    for (Plan& plan : *packed) {
        Plan candidate = merged(plan, residual);
        if (candidate.occupancy > 1) continue;
        if (best != nullptr && candidate.occupancy <= best_merged.occupancy) continue;
        best = &plan;
        best_merged = std::move(candidate);
    }
    if (best != nullptr) {
        *best = std::move(best_merged);
    } else {
        packed->push_back(residual);
    }
}

void Packing::fit() {
    while (plans_.size() > cluster_.executors()) {
        const Plan surplus = std::move(plans_.back());
        plans_.pop_back();
        const auto freest = std::min_element(
            plans_.begin(), plans_.end(),
            [](const Plan& a, const Plan& b) { return a.occupancy < b.occupancy; });
        *freest = merged(*freest, surplus);
    }
}

void Packing::replicate() {
    if (plans_.empty()) return;
    plans_.reserve(cluster_.executors());
    for (std::size_t i = 0; plans_.size() < cluster_.executors(); ++i) {
        plans_.push_back(plans_[i]);
    }
}

class Nexus : public Policy {
  public:
    void begin(Cluster& cluster) override;
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch&) override;

  private:
    // The next share in turn with a request that survives.
    void serve(Cluster& cluster, std::uint32_t executor);

    std::vector<Waiting> queues_;
    std::vector<Plan> plans_;         // by executor; none when no model has a rate
    std::vector<std::size_t> turns_;  // the share that is next
};

void Nexus::begin(Cluster& cluster) {
    queues_.resize(cluster.models());
    plans_ = Packing(cluster).plan();
    turns_.resize(plans_.size(), 0);
}

void Nexus::arrived(Cluster& cluster, RequestId id) {
    queues_[cluster.request(id).model].add(cluster, id);
    if (cluster.idle_count() == 0) return;
    for (std::uint32_t e = 0; e < plans_.size(); ++e) {
        if (cluster.idle(e)) serve(cluster, e);
    }
}

void Nexus::batch_ended(Cluster& cluster, std::uint32_t executor, const Batch&) {
    if (executor < plans_.size()) serve(cluster, executor);
}

void Nexus::serve(Cluster& cluster, std::uint32_t executor) {
    const std::vector<Share>& shares = plans_[executor].shares;
    for (std::size_t tried = 0; tried < shares.size(); ++tried) {
        const Share& share = shares[turns_[executor]];
        turns_[executor] = (turns_[executor] + 1) % shares.size();
        Waiting& queue = queues_[share.model];
        while (!queue.empty()) {
            const std::size_t rows = std::min(share.rows, queue.size());
            const Nanos ends = cluster.now() + cluster.latency(share.model).at(rows);
            if (ends <= queue.deadline(0)) {
                cluster.dispatch(executor, share.model, queue.take(cluster, 0, rows));
                return;
            }
            queue.drop_front(cluster);
        }
    }
}

}  // namespace

std::unique_ptr<Policy> make_nexus() { return std::make_unique<Nexus>(); }

}  // namespace infersched::simulation
