// Nexus's plan: which executor serves which models with which batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simulation/cluster.h"

namespace infersched::simulation {

struct NexusShare {
    std::uint32_t model = 0;
    std::size_t rows = 1;    // planned batch
    double rate_per_ns = 0;  // of the model that this executor is to serve
};

// Of one executor; without shares it stays idle.
struct NexusPlan {
    std::vector<NexusShare> shares;
    double cycle_ns = 0;
    double occupancy = 0;  // busy part of the cycle

    // What the executor can serve of it, requests/ns.
    double throughput(const NexusShare& share) const {
        return static_cast<double>(share.rows) / cycle_ns;
    }
};

// One for each executor, for the largest multiple of the scenario's mean rates that fits them all;
// where not even the smallest does, what is left over is laid on the least occupied executors.
std::vector<NexusPlan> nexus_plan(const Cluster& cluster);

}  // namespace infersched::simulation
