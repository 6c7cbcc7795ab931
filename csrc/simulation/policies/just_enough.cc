// Load-aware batching, "just enough": batches only as large as the present load needs, so that
// light load waits for nothing and heavy load becomes deferral with slack. The policy to beat.
//
// With rates r_m, executors are busy for sum r_m * (alpha_m + beta_m / b_m). The b_m that just fit
// N executors and lengthen the batches least are proportional to sqrt(r_m * beta_m).

#include <algorithm>
#include <cmath>

#include "simulation/policies/deferred.h"
#include "simulation/policies/policies.h"

namespace infersched::simulation {

namespace {

constexpr double kSlackShare = 0.1;  // of the objective

class JustEnough : public Deferred {
  protected:
    void retarget(Cluster& cluster) override {
        double capacity = cluster.executors();
        double roots = 0;
        for (std::uint32_t m = 0; m < models_.size(); ++m) {
            const double per_ns = models_[m].rate.per_s() / 1e9;
            capacity -= per_ns * cluster.latency(m).alpha_ns();
            roots += std::sqrt(per_ns * std::max(cluster.latency(m).beta_ns(), 0.0));
        }
        for (std::uint32_t m = 0; m < models_.size(); ++m) {
            const double per_s = models_[m].rate.per_s();
            const Latency& latency = cluster.latency(m);
            const auto limit =
                static_cast<double>(staggered_rows(latency, cluster.objective_ns(m), per_s, false));
            const double root = std::sqrt(per_s / 1e9 * std::max(latency.beta_ns(), 0.0));
            const double wanted = capacity > 0 ? std::ceil(root * roots / capacity) : limit;
            models_[m].target = static_cast<std::size_t>(std::clamp(wanted, 1.0, limit));
        }
    }

    Nanos ready_ns(const Cluster& cluster, std::uint32_t model) const override {
        const ModelState& state = models_[model];
        const Gathering& next = state.next;
        if (next.rows >= state.target) return cluster.now();
        const double slack = kSlackShare * static_cast<double>(cluster.objective_ns(model));
        return next.deadline_ns - cluster.latency(model).at(next.rows + 1) -
               static_cast<Nanos>(slack);
    }
};

}  // namespace

std::unique_ptr<Policy> make_just_enough() { return std::make_unique<JustEnough>(); }

}  // namespace infersched::simulation
