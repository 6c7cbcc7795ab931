// Symphony (Chen et al. 2023): every batch waits until one more request could no longer join it.

#include "simulation/policies/deferred.h"
#include "simulation/policies/policies.h"

namespace infersched::simulation {

namespace {

constexpr Nanos kMarginNs = 100 * kMicrosecond;

class Symphony : public Deferred {
  protected:
    void retarget(Cluster& cluster) override {
        for (std::uint32_t m = 0; m < models_.size(); ++m) {
            models_[m].target = staggered_rows(cluster.latency(m), cluster.objective_ns(m),
                                               models_[m].rate.per_s(), true);
        }
    }
    Nanos ready_ns(const Cluster& cluster, std::uint32_t model) const override {
        const Gathering& next = models_[model].next;
        const Latency& latency = cluster.latency(model);
        if (next.rows >= latency.rows_max()) return cluster.now();
        return next.deadline_ns - latency.at(next.rows + 1) - kMarginNs;
    }
};

}  // namespace

std::unique_ptr<Policy> make_symphony() { return std::make_unique<Symphony>(); }

}  // namespace infersched::simulation
