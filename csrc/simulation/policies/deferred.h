// What Symphony and the just-enough policy have in common: batches are gathered per model, become
// ready at a time of their own, and the ready one with the earliest latest start takes an executor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "simulation/policies/gather.h"
#include "simulation/policies/rate_meter.h"
#include "simulation/policy.h"

namespace infersched::simulation {

class Deferred : public Policy {
  public:
    void begin(Cluster& cluster) override;
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) override;
    void timer(Cluster& cluster) override;

  protected:
    struct ModelState {
        Gathering next;
        RateMeter rate;
        std::size_t target = 1;
    };

    // New targets from the rates of the tick that ended.
    virtual void retarget(Cluster& cluster) = 0;
    // When the gathered batch of a model, not empty, may go.
    virtual Nanos ready_ns(const Cluster& cluster, std::uint32_t model) const = 0;

    // The largest batch that staggered executors answer in time at this rate:
    // l(b) * (1 + 1/max(n, 1)) <= objective, n = rate * l(b) / b. At least 1.
    static std::size_t staggered_rows(const Latency& latency, Nanos objective_ns, double per_s,
                                      bool waits_for_rows);

    std::vector<ModelState> models_;

  private:
    void tick(Cluster& cluster);
    void gather(Cluster& cluster, std::uint32_t model);
    void serve(Cluster& cluster);

    Nanos next_tick_ns_ = 0;
};

}  // namespace infersched::simulation
