// The turns of a run under the engine: the events of a moment, a step, what it wants done. Private
// to this room: engine_run.h is what others use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "simulation/backends.h"
#include "simulation/driven_engine.h"
#include "simulation/engine_run.h"
#include "simulation/event_heap.h"
#include "simulation/truths.h"

namespace infersched::simulation {

class EngineLoop {
  public:
    EngineLoop(const Scenario& scenario, const EngineSettings& settings);
    EngineMetrics run();

  private:
    struct Request {
        engine::RequestHandle handle = 0;
        std::uint64_t ordinal = 0;
        Nanos arrived_ns = 0;
        Nanos deadline_ns = 0;
        std::uint32_t model = 0;
        std::uint32_t kind = 0;
        bool counted = false;
        bool open = false;
    };
    struct Ended {
        engine::BatchHandle batch = 0;
        Nanos held_ns = 0;
    };

    Nanos engine_now() const { return now_ + epoch_ns_; }

    // engine_loop.cc
    void configure();
    void schedule_arrival(std::uint32_t model);
    // All events of the next moment; whether the run goes on.
    bool turn();
    void handle(const Event& event);
    void arrive(std::uint32_t model);
    void read_device(std::uint32_t device);
    void note_memory_failure(const engine::Action& action);
    std::uint32_t pick_class(std::uint32_t model);
    std::uint32_t add_request(std::uint32_t model, std::uint32_t kind);
    void back(const Backends::Reply& reply);
    void act();
    void send(const engine::Action& action);
    const RequestClass& class_of(const Request& request) const {
        return setups_[request.model].classes[request.kind];
    }
    void answer(const engine::Action& action);
    void settle(std::uint64_t user, Fate fate);
    void count_miss(const Request& request, Fate fate, ClassMetrics& kind);
    void close();
    void drain();

    // engine_faults.cc
    void schedule_faults();
    void begin(const Fault& fault);
    void end(const Fault& fault);
    void configure_model(std::uint32_t model);
    void set_available(std::uint32_t backend, int change, const Fault& fault);
    void cancel_some(double part);
    void make_absurd(engine::Request& request);
    void send_stale_handles();

    const Scenario& scenario_;
    const EngineSettings& settings_;
    std::vector<ModelSetup> setups_;  // as configured now: faults change them
    Truths truths_;
    DrivenEngine engine_;
    EventHeap events_;
    Backends backends_;
    Random classes_random_;
    Random faults_random_;
    std::vector<Arrivals> arrivals_;
    std::vector<Request> requests_;
    std::vector<std::uint32_t> free_;
    std::vector<Ended> ended_;        // in this turn
    Nanos tried_ns_ = 0;              // when the first batch started that failed in this turn
    std::vector<int> outages_;        // by backend: kDown faults that are on
    std::vector<double> share_sums_;  // by model
    std::size_t readings_ = 0;        // that are to come
    double absurd_ = 0;               // part of the requests
    bool arriving_ = true;
    EngineMetrics metrics_;
    Nanos now_ = 0;
    Nanos epoch_ns_;
    Nanos wake_ns_ = kNever;
    Nanos ends_ns_ = kNever - 1;
    Nanos objective_max_ns_ = 0;
    std::uint64_t arrived_ = 0;
    std::uint64_t counted_ = 0;
    std::uint64_t misses_ = 0;
};

}  // namespace infersched::simulation
