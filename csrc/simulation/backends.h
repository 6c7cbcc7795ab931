// The backends the engine sends to, as it sees them: batches come back after a while, or fail.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "simulation/device_arenas.h"
#include "simulation/engine_settings.h"
#include "simulation/event_heap.h"
#include "simulation/execution.h"
#include "simulation/scenario.h"

namespace infersched::simulation {

// The instances of a placement run one batch each; placements of one executor group together run
// one. What is sent beyond that waits there, first come first served.
class Backends {
  public:
    struct Batch {
        engine::BatchHandle handle = 0;
        std::uint32_t model = 0;
        std::uint32_t backend = 0;
        std::uint32_t rows = 0;
        std::uint64_t row_bytes = 0;
    };
    struct Reply {
        Batch batch;
        Nanos held_ns = 0;  // the executor
        bool failed = false;
        engine::FailureKind failure = engine::FailureKind::kFinal;
        StatusCode code = StatusCode::kOk;
    };

    Backends(const Scenario& scenario, const EngineSettings& settings,
             const std::vector<ModelSetup>& models, EventHeap& events);

    void send(const Batch& batch, Nanos now);
    // One that has not started is taken back; one that runs goes on.
    void abandon(engine::BatchHandle handle, std::uint32_t backend);
    // kBatchArrives, kBatchEnd and kReply of batches. True: it is back, with what it brings.
    bool handle(const Event& event, Nanos now, Reply* reply);

    void begin(const Fault& fault);
    void end(const Fault& fault);
    // Executions do not become slower any more.
    void end_drift(Nanos now) { drift_until_ = now; }
    // What is there is lost; its handles, in the order of sending.
    std::vector<engine::BatchHandle> lose(std::uint32_t backend, Nanos now);

    // Of batches that started after the warm-up.
    const std::vector<ModelMetrics>& counts() const { return counts_; }
    std::size_t out() const { return out_; }
    DeviceArenas& arenas() { return arenas_; }

  private:
    enum class Where : std::uint8_t { kNowhere, kOnTheWay, kWaiting, kRunning, kReplying };
    struct Sent {
        Batch batch;
        std::uint64_t generation = 0;
        std::uint64_t order = 0;
        std::uint32_t station = 0;
        Where where = Where::kNowhere;
        bool refused = false;
        bool out_of_memory = false;
        std::uint32_t server = 0;
        Nanos held_ns = 0;
    };
    struct Station {
        std::uint32_t servers = 1;
        std::vector<std::uint32_t> idle;
        std::deque<std::uint32_t> waiting;
    };
    // The faults that are on, of one backend.
    struct Trouble {
        double slow = 1;
        double failing = 0;
        Nanos hangs_until_ns = 0;
        int refusing = 0;
        engine::FailureKind failure = engine::FailureKind::kFinal;
        StatusCode code = StatusCode::kInternal;
    };

    void arrive(std::uint32_t slot, Nanos now);
    void start(std::uint32_t slot, std::uint32_t server, Nanos now);
    void leave_station(const Sent& sent, Nanos now);
    void finish(std::uint32_t slot, Reply* reply);
    void release(std::uint32_t slot);
    template <class Change>
    void each(std::uint32_t backend, Change change);

    const Scenario& scenario_;
    const EngineSettings& settings_;
    EventHeap& events_;
    Random random_;
    DeviceArenas arenas_;
    std::size_t backends_ = 0;
    Nanos drift_until_ = kNever;
    std::vector<std::uint32_t> station_of_;  // by model * backends_ + backend
    std::vector<Station> stations_;
    std::vector<Trouble> troubles_;
    std::vector<Sent> sent_;
    std::vector<std::uint32_t> free_;
    std::vector<ModelMetrics> counts_;
    std::uint64_t order_ = 0;
    std::size_t out_ = 0;
};

}  // namespace infersched::simulation
