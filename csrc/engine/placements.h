// The backends of a model: slots, what is out there, how long it takes, which one is chosen.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/latency_model.h"
#include "engine/memory_need.h"
#include "engine/queue.h"

namespace infersched::engine {

// A batch may be staged when it is expected to start within this time.
inline constexpr Nanos kStageAheadNs = 2 * kMillisecond;
// Batches formed by learned latency are staged when they take no longer than this.
inline constexpr Nanos kPlannedStageMaxNs = 2 * kStageAheadNs;
// A placement that failed without running anything rests: doubled with every failure in a row, so
// that a backend that fails fast does not draw all the work.
inline constexpr Nanos kRestMinNs = 10 * kMillisecond;
inline constexpr Nanos kRestMaxNs = kSecond;

// Sizes of batches that device memory allows.
struct MemoryLimit {
    double single = kNoSizeLimit;  // where requests are cut
    double merged = kNoSizeLimit;  // up to which they are put together: no larger than that one
};

struct PlacementState {
    std::uint32_t backend = 0;
    std::uint32_t instances = 1;
    std::uint32_t slots = 1;  // batches that run at once: instances, or direct_max
    bool ready = false;
    bool configured = true;               // false: removed, kept until its last batch is back
    std::uint32_t executor = 0xffffffff;  // the shared one; kNoExecutor: its own instances
    std::vector<std::uint32_t> out;       // batches there, in order of dispatch
    std::uint64_t rows_out = 0;
    Nanos ns_per_row = 0;  // moving averages of start to reply; 0 = nothing seen yet
    Nanos batch_ns = 0;
    LatencyModel latency;        // of models that are batched by it
    std::uint32_t failures = 0;  // in a row, of those that make it rest
    Nanos rest_until = std::numeric_limits<Nanos>::min();
    Pool pinned;
    std::vector<std::uint32_t> devices;      // that its instances are on
    MemoryNeed memory;                       // on each of them
    double growing_size = 0;                 // the largest one out that is beyond its mark
    mutable std::uint64_t memory_stamp = 0;  // MemoryLedger's, of memory_limit
    mutable MemoryLimit memory_limit;
    SequenceList sequences;  // pinned here, in the order of pinning
    std::uint32_t sequence_count = 0;

    bool resting(Nanos now) const { return rest_until > now; }
    void rest(Nanos now);
    void recover() {
        failures = 0;
        rest_until = std::numeric_limits<Nanos>::min();
    }
    // Accounts a reply after `ran_ns` of execution.
    void observe(Nanos ran_ns, std::uint32_t rows);
};

// The moving average of all times here: an eighth of the new sample.
Nanos averaged(Nanos average, Nanos sample);

// When one more batch may be staged beyond the running ones; kNever: not before a reply.
//
// A staged batch starts when the oldest running one ends and the staged ones before it have had
// their turn. Committing earlier than kStageAheadNs before that costs goodput and merging.
Nanos stage_at(const PlacementState& placement, std::uint32_t staged_batches_max,
               Nanos oldest_start);

// Whether a batch of the rows queued is worth staging: when it is full, or half full and at least
// as large as all that is out there. Smaller ones grow while they wait for a reply.
bool worth_staging(std::uint64_t rows_queued, std::uint32_t rows_full, std::uint64_t rows_out);

// Expected time until a batch of `rows` would be done there: all rows out times the time per row.
std::uint64_t expected_completion_ns(const PlacementState& placement, std::uint32_t rows);

}  // namespace infersched::engine
