// What the engine is told in a run, and what its backends do to it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "base/time.h"
#include "engine/engine.h"

namespace infersched::simulation {

// A kind of requests of one model.
struct RequestClass {
    double share = 1;            // of the model's requests, in proportion to the other classes
    std::uint64_t priority = 0;  // as engine::Request
    Nanos objective_ns = 0;      // the deadline its clients send; 0: the model's, kNever: none
    std::uint32_t tenant = 0;
    std::uint32_t rows = 1;
    std::uint32_t signatures = 1;  // evenly spread
    std::uint64_t row_bytes = 0;   // as engine::Request; they share no batch with other ones
};

struct ModelSetup {
    engine::ModelPolicy policy;
    std::vector<engine::Placement> placements;
    std::vector<RequestClass> classes;  // none: one of the defaults
    // What batches really take of the devices of the placements: an instance keeps its largest. A
    // row takes bytes_per_row times RequestClass::row_bytes where that is not 0.
    std::uint64_t base_bytes = 0;
    std::uint64_t bytes_per_row = 0;
};

// What another tenant of a device wants to hold from a moment on.
struct TenantUse {
    Nanos from_ns = 0;
    std::uint64_t bytes = 0;
};

// One that the placements name.
struct DeviceSetup {
    std::uint64_t total_bytes = 0;
    std::uint64_t headroom_bytes = 0;
    Nanos poll_ns = 100 * kMillisecond;  // readings come so often; 0: the engine is not told of it
    std::vector<TenantUse> tenant;       // by time
};

enum class FaultKind : std::uint8_t {
    kSlow,       // executions take `factor` times as long
    kDown,       // what is there is lost with `failure`, nothing new is taken
    kHang,       // what starts does not end before the fault does
    kFailing,    // a part `factor` of the batches ends with `failure` and `code`
    kRefusing,   // nothing runs: every batch comes back at once with kNothingRan
    kCancels,    // a part `factor` of the open requests is cancelled, at once
    kClockJump,  // the engine's clock moves by shift_ns, either way, at once
    kNonsense,   // a part `factor` of the requests has absurd times; stale and unknown handles come
    kDraining,   // the engine drains
    kRemoved,    // `model` is not in use
    kUnplaced,   // `model` is not placed on `backend`
    kInstances,  // `model` has one instance more on every backend
};

struct Fault {
    FaultKind kind = FaultKind::kSlow;
    Nanos from_ns = 0;
    Nanos until_ns = 0;                          // the fault is over; before from_ns: as from_ns
    std::uint32_t backend = engine::kNoBackend;  // kNoBackend: all
    std::uint32_t model = 0;
    double factor = 1;
    Nanos shift_ns = 0;
    engine::FailureKind failure = engine::FailureKind::kConnection;
    StatusCode code = StatusCode::kUnavailable;
};

// The number of no request.
inline constexpr std::uint64_t kNoOrdinal = UINT64_MAX;

// The engine's time at the start of a simulation: a monotonic clock is not near 0.
inline constexpr Nanos kEpochNs = 1000 * kSecond;
// No jump takes it further, and a run ends some years later: the engine adds to it as to any time.
inline constexpr Nanos kClockMaxNs = 9'000'000'000 * kSecond;
inline constexpr Nanos kClockEndNs = 9'100'000'000 * kSecond;

struct EngineSettings {
    std::uint32_t rows_max = 128;  // of every model without a setup
    // One for each model, or none: every executor of the scenario is a backend that holds all
    // models, the model's objective its slo.
    std::vector<ModelSetup> models;
    std::vector<double> tenants;  // the weights of tenants 1, 2, ... are at 1, 2, ...
    std::vector<double> speeds;   // of backend i: executions take 1/speed as long; missing ones: 1
    double drift_per_s = 0;       // executions take 1 + drift * t as long
    Nanos wire_ns = 0;            // to a backend, and back
    std::vector<Fault> faults;
    std::vector<DeviceSetup> devices;
    // The truths of the engine, after every event: its invariants, one answer for each request,
    // nothing kept after its deadline, nothing sent where it must not go, a copy from save() and
    // load() that acts alike, and everything answered in the end. Slow.
    bool check_truths = false;
    bool keep_fates = false;  // EngineMetrics::fates
    // The request of this number, in the order of arrival, is admitted whatever is predicted.
    std::uint64_t forced_ordinal = kNoOrdinal;
    std::uint64_t kept_ordinal = kNoOrdinal;  // the one that is not given up
    Nanos stop_ns = kNever;                   // the run ends then, at the latest
};

}  // namespace infersched::simulation
