// How many executors long batches leave to models that cannot wait for them.
//
// A batch is not taken back: while batches of slow models hold all executors, what a model with a
// tight objective gets can be in time no more, however short its own batches are. So the slow ones
// run on no more executors at once than the others, by their rates and latencies, can spare; under
// more load than there is room for, on their part. At least one is theirs, and the others use all.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/batching/blocking.h"

namespace infersched::engine {

// Batches of a group that are led by this metered level, or one below it, are run side by side only
// as long as so many executors are left. 0: on all of them.
struct Reserve {
    std::uint32_t executors = 0;
    std::uint32_t level = 0;

    bool binds(std::uint32_t queue_level) const {
        return executors > 0 && metered_level(queue_level) >= level;
    }
};

// What a group asks of executors that are shared.
struct Demand {
    std::uint32_t model = 0;
    double budget_ns = 0;
    double row_ns = 0;        // a batch of one row
    double batch_ns = 0;      // of `rows` rows
    double rows = 1;          // the size that the whole load asks for
    double rows_awaited = 1;  // what a batch waits for
    double rows_fit = 1;      // the largest one that staggered executors do in time
    double rows_busy = 0;     // executors busy with its rows, whatever the batches
    double root = 0;          // sqrt(rate * beta)
    std::uint32_t level = 0;  // the lowest of its requests
    // What it leaves to others, and the size that the load asks for on the executors that are left.
    Reserve reserve;
    double rows_held = 0;

    double patience_ns() const { return budget_ns - row_ns; }
    // Executors that it keeps busy with the largest batches.
    double busy() const { return rows_busy + root * root / rows_fit; }
};

// Finds what each of them is to leave to others. The executors are those that all may use.
void plan_reserves(std::vector<Demand>& demands, std::uint32_t executors);

}  // namespace infersched::engine
