// The interface of the reference policies, which exist to be compared against.
//
// The product's own policy is the engine and does not implement this.
#pragma once

#include <cstdint>
#include <memory>

#include "simulation/cluster.h"

namespace infersched::simulation {

class Policy {
  public:
    virtual ~Policy() = default;
    // Before the first event.
    virtual void begin(Cluster&) {}
    virtual void arrived(Cluster& cluster, RequestId id) = 0;
    // A batch ended and its requests were answered; the executor is idle unless work was staged.
    virtual void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) = 0;
    // What the executor ran, and what was staged there, is lost and counted.
    virtual void executor_down(Cluster&, std::uint32_t) {}
    // It is idle again.
    virtual void executor_up(Cluster& cluster, std::uint32_t) { timer(cluster); }
    // The time given to wake_at has come; the timer is unset.
    virtual void timer(Cluster&) {}
};

}  // namespace infersched::simulation
