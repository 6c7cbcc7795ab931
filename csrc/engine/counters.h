// The counters page: what the control plane reads at scrape without asking the data plane.
//
// One fixed layout in shared memory, written by the engine's thread only, read by others while it
// changes: every field is one aligned 64-bit word, so a reader sees old or new values, never torn
// ones. Durations are sums of nanoseconds; histograms are cumulative-free bucket counts (the reader
// adds up).
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/memory/status.h"

namespace infersched::engine {

inline constexpr std::uint64_t kCountersMagic = 0x696e666572736368;  // "infersch"
inline constexpr std::uint32_t kCountersVersion = 7;
// The page is sparse: models that are not in use take no memory.
inline constexpr std::size_t kCountersModelsMax = 16'384;
inline constexpr std::size_t kCountersBackendsMax = 256;
// Priority levels that are told apart; those beyond count as the last one.
inline constexpr std::size_t kCountersLevelsMax = 32;

// How a request ended, as exported in the label `outcome` of infersched_requests_total.
enum class Outcome : std::uint8_t { kCompleted, kRefused, kExpired, kCancelled, kFailed, kCount };

// Why, as exported in the label `reason`.
enum class Reason : std::uint8_t {
    kNone,
    kInvalid,       // the request itself is wrong (counted by the gateway)
    kUnknownModel,  // counted on the page as a whole
    kQueueFull,     // requests or bytes
    kQueueAge,      // the oldest queued request is too old
    kHostMemory,
    kDeadlineInfeasible,  // past or too short at arrival
    kExpiredInQueue,
    kExpiredInFlight,
    kClientCancelled,
    kDraining,
    kNoBackend,
    kBackendError,
    kSequenceLost,   // the backend of the sequence went away
    kUnloading,      // the model is being unloaded
    kPredictedLate,  // would be late by the learned latencies
    kPriorityShed,   // of a priority that overload leaves no room for
    kTenantQuota,    // the tenant is over its share
    kDeviceMemory,   // fits no device, not even alone
    kModelShare,  // of a model better off than those that miss beside it (admission/class_shares.h)
    kCount,
};

// Upper bounds of the duration buckets: 50 us * 2^i, the last one is +Inf.
inline constexpr std::size_t kDurationBuckets = 20;
inline constexpr std::int64_t kFirstDurationBoundNs = 50'000;
// Upper bounds of the row buckets: 2^i, the last one is +Inf.
inline constexpr std::size_t kRowBuckets = 16;

struct DurationHistogram {
    std::uint64_t counts[kDurationBuckets];
    std::uint64_t sum_ns;
};

struct RowHistogram {
    std::uint64_t counts[kRowBuckets];
    std::uint64_t sum_rows;
};

// Requests of one priority level, the one they asked for, with a deadline: of the client or by an
// slo. They count as they end: refused for any Reason but kUnknownModel, completed, expired or
// failed. Not: cancelled by the client, refused before the engine, or still open.
struct LevelCounters {
    std::uint64_t slo_total;
    std::uint64_t slo_good;  // of these, completed no later than the deadline
};

struct ModelCounters {
    std::uint64_t in_use;  // 1 while the model is in the catalog
    // The ledger: admitted = completed + expired + cancelled + failed + in_flight, always.
    std::uint64_t admitted;
    std::uint64_t completed;
    std::uint64_t expired;
    std::uint64_t cancelled;
    std::uint64_t failed;
    std::uint64_t in_flight;  // admitted and not answered: queued or at a backend
    std::uint64_t refused;
    std::uint64_t outcomes[static_cast<std::size_t>(Outcome::kCount)]
                          [static_cast<std::size_t>(Reason::kCount)];
    std::uint64_t queued_requests;
    std::uint64_t queued_rows;
    std::uint64_t queued_bytes;
    std::uint64_t oldest_arrival_ns;  // monotonic clock; 0 = nothing queued
    std::uint64_t inflight_batches;
    std::uint64_t batches;
    std::uint64_t batch_rows_capacity;  // sum of the batch limits of the dispatched batches
    std::uint64_t retried_batches;      // dispatched again after a failure
    std::uint64_t bisected_batches;
    std::uint64_t memory_limited_batches;  // that device memory kept smaller
    std::uint64_t out_of_memory_replies;
    std::uint64_t slo_total;                   // as LevelCounters, of all levels
    std::uint64_t slo_good;                    // likewise
    LevelCounters levels[kCountersLevelsMax];  // of level 1, 2, ...
    RowHistogram batch_rows;
    DurationHistogram queue_wait;    // arrival to dispatch
    DurationHistogram backend_time;  // dispatch to reply, per batch
    DurationHistogram request_time;  // arrival to answer, completed requests
};

struct BackendCounters {
    std::uint64_t in_use;
    std::uint64_t batches;
    std::uint64_t rows;
    std::uint64_t failed_batches;
    std::uint64_t inflight_batches;
    std::uint64_t inflight_rows;
    std::uint64_t connections_open;
};

// By the last reading.
struct DeviceCounters {
    std::uint64_t seen;   // 1 once a reading has come
    std::uint64_t known;  // 1 while there is a source
    std::uint64_t free_bytes;
    std::uint64_t total_bytes;
    std::uint64_t headroom_bytes;
    std::uint64_t reserved_bytes;  // of batches that the reading may not show yet
};

struct CountersPage {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t pid;  // of the data plane that writes
    std::uint64_t page_bytes;
    std::uint64_t generation;  // of the last Apply
    std::uint64_t loop_turns;
    std::uint64_t loop_lag_max_ns;  // since start
    std::uint64_t loop_busy_ns;     // time inside turns
    std::uint64_t client_connections;
    std::uint64_t connections_total;
    std::uint64_t streams_reset_total;
    std::uint64_t forwarded_streams_total;
    std::uint64_t host_bytes;
    std::uint64_t unknown_model_total;
    std::uint64_t undecodable_total;  // messages that are no ModelInferRequest
    // Requests for models that had to be loaded first, before the ledgers of the models:
    // parked = admitted + expired + cancelled + failed + waiting.
    std::uint64_t loading_waiting;
    std::uint64_t loading_parked_total;
    std::uint64_t loading_admitted_total;  // handed to admission, which may still refuse them
    std::uint64_t loading_expired_total;
    std::uint64_t loading_cancelled_total;
    // The load failed, the scheduler drains, or what came behind it on its stream is too much.
    std::uint64_t loading_failed_total;
    std::uint64_t loading_refused_total;  // at arrival
    std::uint64_t loop_gathering_ns;      // time between turns in which replies were left to gather
    // Steps of the engine before the one before, by the clock, and long after they were due.
    std::uint64_t clock_back_total;
    std::uint64_t clock_ahead_total;
    std::uint64_t reserved[5];
    DeviceCounters devices[kDevicesMax];
    BackendCounters backends[kCountersBackendsMax];
    ModelCounters models[kCountersModelsMax];
};

static_assert(alignof(CountersPage) == 8 && sizeof(ModelCounters) % 8 == 0);

}  // namespace infersched::engine
