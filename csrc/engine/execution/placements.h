// The backends of a model: slots, what is out there, how long it takes, which one is chosen.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/execution/head_start.h"
#include "engine/latency/likeness.h"
#include "engine/latency/model.h"
#include "engine/memory/need.h"
#include "engine/memory/taking.h"
#include "engine/queues/queue.h"

namespace infersched::engine {

// A batch may be staged when it is expected to start within this time.
inline constexpr Nanos kStageAheadNs = 2 * kMillisecond;
// Batches formed by learned latency are staged when they take no longer than this.
inline constexpr Nanos kPlannedStageMaxNs = 2 * kStageAheadNs;
// A placement that failed without running anything rests: doubled with every failure in a row, so
// that a backend that fails fast does not draw all the work.
inline constexpr Nanos kRestMinNs = 10 * kMillisecond;
inline constexpr Nanos kRestMaxNs = kSecond;
// One that answers that it is unavailable, or resets streams, rests from this failure in a row on:
// fewer may be meant for the requests.
inline constexpr std::uint32_t kDoubtsMax = 3;

// Rows of a batch that device memory allows.
struct RowsAllowed {
    std::uint32_t single = 0xffffffff;  // where requests are cut
    std::uint32_t merged = 0xffffffff;  // up to which they are put together: no more than that
};

// The same as sizes, and in rows of a size.
struct MemoryLimit {
    double single = kNoSizeLimit;
    double merged = kNoSizeLimit;
    double row_size = 1;
    RowsAllowed rows;

    MemoryLimit() = default;
    MemoryLimit(double of_one, double of_all, double of_row)
        : single(of_one),
          merged(of_all),
          row_size(of_row),
          rows{whole_rows(of_one / of_row), whole_rows(of_all / of_row)} {}
};

struct PlacementState {
    std::uint32_t backend = 0;
    std::uint32_t instances = 1;
    std::uint32_t device_instances = 0;  // on one device; 0: as many on each
    std::uint32_t slots = 1;             // batches that run at once: instances, or direct_max
    bool ready = false;
    bool configured = true;               // false: removed, kept until its last batch is back
    std::uint32_t executor = 0xffffffff;  // the shared one; kNoExecutor: its own instances
    std::vector<std::uint32_t> out;       // batches there, in order of dispatch
    std::uint64_t rows_out = 0;
    Nanos ns_per_row = 0;  // moving averages of start to reply; 0 = nothing seen yet
    Nanos batch_ns = 0;
    HeadStart head_start;
    LatencyLikeness likeness;                   // to the model's other backends
    std::unique_ptr<LatencyModel> own_latency;  // of one that is new, or unlike the others
    std::uint64_t batches_learned = 0;          // that it ran itself
    IgnoredTimes ignored_times;
    // Sizes of which a prior said what is known of the others; while it has run nothing.
    std::vector<std::uint32_t> rows_alike;
    bool cut = false;            // a batch was given up at its deadline; none has run on since
    std::uint32_t failures = 0;  // in a row, of those that make it rest, at once or later
    Nanos rest_until = std::numeric_limits<Nanos>::min();
    // The batch that is to have the devices for itself (BatchRecord::alone); 0: none. What such
    // batches have held back is paid for until then: before, there is no other.
    BatchHandle held_for = 0;
    Nanos hold_paid_at = std::numeric_limits<Nanos>::min();
    Pool pinned;
    std::vector<std::uint32_t> devices;      // that its instances are on
    MemoryNeed memory;                       // on each of them
    std::vector<MemoryTaking> taking;        // by device
    std::vector<MemoryGrowth> growing;       // the batches out that are beyond its mark
    std::uint64_t held_bytes = 0;            // that they keep of what batches took, on each
    mutable std::uint64_t memory_stamp = 0;  // MemoryLedger's, of memory_limit
    mutable MemoryLimit memory_limit;
    SequenceList sequences;  // pinned here, in the order of pinning
    std::uint32_t sequence_count = 0;

    bool resting(Nanos now) const { return rest_until > now; }
    void rest(Nanos now);
    void note_doubt(Nanos now);
    void recover() {
        failures = 0;
        rest_until = std::numeric_limits<Nanos>::min();
    }
    // Accounts a reply after `ran_ns` of execution, up to kLatencyRanMax.
    void observe(Nanos ran_ns, std::uint32_t rows);
};

// Whether batches of the one leave less memory to those of the other.
bool share_devices(const PlacementState& a, const PlacementState& b);

// The placement chosen for a batch.
struct Choice {
    PlacementState* placement = nullptr;
    Nanos blocked_until = kNever;  // when a rest or the staging rule may let it go
    // Of one that leaves before an instance is free: the batch whose instance will be.
    std::uint32_t follows = kNoSlot;
};

// From when on a batch may leave for a placement; kNever: not before a reply.
struct Departure {
    Nanos at = kNever;
    std::uint32_t follows = kNoSlot;  // as of its choice
};

enum class Executors : std::uint8_t { kAll, kOwn };

// What is to be placed.
struct Load {
    Executors executors = Executors::kAll;
    std::uint32_t rows = 0;          // of the batch to place
    std::uint64_t rows_waiting = 0;  // that could still join it
    bool merging = false;
    bool stage = false;
    bool early = false;            // may leave for an instance that is about to be free
    const Group* group = nullptr;  // that it is of; nullptr: it is sent again
    bool planned = false;          // of a batch that learned latency formed
    bool spread = false;           // of a sequence that is to be pinned: the fewest sequences count
    std::uint32_t avoid = kNoBackend;
    bool again = false;  // after a failure
    bool alone = false;  // behind others that have devices for themselves
    // Of a batch that has: itself, and what else is out there.
    BatchHandle hold = 0;
    std::uint32_t others_out = 0;
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
