// The reference policies by name. Each is built from published descriptions, with fixed constants,
// and knows l(b) exactly; those that plan for rates are given the mean rates or measure them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/time.h"
#include "simulation/policy.h"

namespace infersched::simulation {

// Triton's dynamic batcher: FIFO, a maximum batch, a maximum delay, an optional queue timeout.
struct StaticSettings {
    std::uint32_t rows_max = 64;
    std::uint32_t rows_preferred =
        0;               // sent at this size without waiting for the delay; 0: rows_max
    Nanos delay_ns = 0;  // 0: as soon as an executor is idle
    Nanos queue_timeout_ns = kNever;  // dropped when it has waited longer
};

// One setting for each model; a single one serves all.
std::unique_ptr<Policy> make_static(std::vector<StaticSettings> settings);
std::unique_ptr<Policy> make_symphony();
// Commits batches up to `ahead_ns` before their executor is free.
std::unique_ptr<Policy> make_clockwork(Nanos ahead_ns);
std::unique_ptr<Policy> make_nexus();
std::unique_ptr<Policy> make_shepherd();
std::unique_ptr<Policy> make_just_enough();
std::unique_ptr<Policy> make_bentoml();
std::unique_ptr<Policy> make_ray_serve();

}  // namespace infersched::simulation
