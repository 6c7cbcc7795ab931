// What the engine keeps per model.
#pragma once

#include <cstdint>
#include <limits>
#include <unordered_map>
#include <vector>

#include "engine/admission/class_shares.h"
#include "engine/admission/size_probes.h"
#include "engine/core_limits.h"
#include "engine/engine.h"
#include "engine/execution/placements.h"
#include "engine/latency/model.h"
#include "engine/queues/level_ages.h"
#include "engine/queues/queue.h"
#include "engine/queues/waiting.h"
#include "engine/records.h"
#include "engine/triton/queue.h"

namespace infersched::engine {

// Executions that bisecting may use: one in ten of the others, and this many at once: a batch
// of 64 is taken apart to the last however many of its members fail.
inline constexpr std::int32_t kBisectTenthsMax = 1280;

// A signature whose merged batches were rejected. It is dispatched unmerged while now < until.
struct Suspect {
    std::uint64_t signature = 0;
    std::int32_t score = 0;  // + kSuspectFailure a rejected batch, - 1 a good one
    Nanos until = std::numeric_limits<Nanos>::min();
};
inline constexpr std::size_t kSuspectsMax = 32;
inline constexpr std::int32_t kSuspectFailure = 8;
inline constexpr std::int32_t kSuspectUnmerged = 32;
inline constexpr Nanos kUnmergedNs = 5 * kSecond;

// A close look at a request that found it late, for others like it.
struct RefusedLook {
    std::uint64_t changes = 0;  // of its component's backlog
    Nanos until = std::numeric_limits<Nanos>::min();
    Nanos deadline = 0;       // its own
    Nanos fits_from = 0;      // the deadline from which on it would have been in time
    Nanos budget_ns = 0;      // from its arrival to its deadline
    Nanos retry_at = kNever;  // when the same one would be in time; kNever: not looked at
    GroupKey group;           // which may have no requests
    std::uint32_t level = 0;
    std::uint32_t rows = 0;
};

// Clients choose their correlation ids, and must not know which share a bucket.
struct SequenceHash {
    std::size_t operator()(std::uint64_t key) const {
        static const char anchor = 0;
        // Where it lies is another place in every process.
        const std::uint64_t seed =
            reinterpret_cast<std::uintptr_t>(&anchor) * 0x9e3779b97f4a7c15ull;
        const std::uint64_t mixed = (key ^ seed) * (seed | 1);
        return static_cast<std::size_t>(mixed ^ mixed >> 32);
    }
};

struct ModelState {
    ModelPolicy policy;        // normalised
    bool known = false;        // was configured once
    bool merging_off = false;  // a reply could not be cut
    bool dirty = false;        // has had an event since the last step
    bool holding = false;      // until policy.hold_requests are queued
    std::vector<PlacementState> placements;
    Pool shared;
    GroupTable groups;
    TritonQueue triton;  // empty without policy.triton
    RequestList by_age;
    std::uint32_t young = kNoSlot;  // the oldest of them that has not come of age
    bool listed_aged = false;       // in Component::aged
    // By key; looked up, never walked.
    std::unordered_map<std::uint64_t, std::uint32_t, SequenceHash> sequences;
    std::vector<std::uint32_t> doomed;  // sequences whose queued requests are to be failed
    WaitingRequests waiting;
    LevelAges ages;  // empty where policy.queue_age_max_ns is 0
    std::uint64_t queued_rows = 0;
    std::uint32_t inflight_batches = 0;
    Nanos batch_ns = 0;  // as PlacementState's, over all placements
    Nanos drain_ns = 0;  // moving average of the time between answers while requests were queued
    Nanos last_complete = 0;
    std::int32_t bisect_tenths = kBisectTenthsMax;
    std::vector<Suspect> suspects;
    ModelStats stats;  // batch_sizes[i] are those of i rows
    // Learned from the batches of all backends but those that have an own_latency.
    LatencyModel latency;
    bool learns = false;                     // batches are formed by learned latency
    bool shares = false;                     // has shared executors
    bool metered = false;                    // in Component::metered
    double device_ns = 0;                    // of its batches since then, the older the less
    std::uint32_t reference = kNoSlot;       // the placement whose latency batches are planned with
    bool latencies_differ = false;           // another one may be faster with other sizes
    std::uint32_t rows_trusted = 1;          // the largest batch to risk
    double request_rows = 0;                 // moving average of those that have a deadline
    mutable std::uint64_t memory_stamp = 0;  // MemoryLedger's, of memory_limit
    mutable MemoryLimit memory_limit;        // of the placement that has the most room
    // A request is let in against the prediction that it finds no room, once a while.
    Nanos memory_probe_at = std::numeric_limits<Nanos>::min();
    std::uint64_t row_bytes = 0;  // of the first request that said them: rows of size 1
    std::uint32_t component = kNoSlot;
    std::vector<std::uint32_t> stale;     // groups to be planned anew
    std::vector<std::uint32_t> planning;  // those of them that plan_stale() is at
    RefusedLook refused;
    std::vector<ClassShare> classes;  // by metered level, where executors are shared
    // Since when all requests were foreseen to be late while nothing ran; kNever: not so.
    Nanos refusing_since = kNever;
    // What is foreseen is: its last batch took less than half of that, or is among the first ones,
    // which may each be the first of an instance.
    bool doubted = false;
    SizeProbes size_probes;
    Nanos more_tried_until = std::numeric_limits<Nanos>::min();  // no larger batch is tried before

    bool merging() const { return policy.merge && !merging_off; }
    // Whether requests may share a batch, and one may be sent in parts.
    bool splits(bool mergeable) const { return mergeable && merging(); }
    // Of a row of so many bytes. The unit is what came first: only ratios matter.
    float row_size_of(std::uint64_t bytes);
    PlacementState* placement(std::uint32_t backend);
    Pool& pool(std::uint32_t pin);
    template <class Visit>
    void each_pool(Visit visit) {
        visit(shared);
        for (PlacementState& placement : placements) visit(placement.pinned);
    }
};

// What is known of the batches of one backend (latency/sharing.cc).
const LatencyModel& latency_of(const ModelState& model, const PlacementState& placement);
void forget_latencies(ModelState& model);
// Of the fastest backend; there must be one.
const LatencyModel& reference_latency(const ModelState& model);

}  // namespace infersched::engine
