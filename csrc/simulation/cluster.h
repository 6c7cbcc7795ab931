// The world a reference policy sees: waiting requests' data, executors, and what it may do to them.
//
// The simulator moves the time; the policy answers its events by dispatching, dropping, preempting
// and setting its one timer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "base/time.h"
#include "simulation/event_heap.h"
#include "simulation/random.h"
#include "simulation/scenario.h"

namespace infersched::simulation {

using RequestId = std::uint32_t;

struct Request {
    Nanos arrived_ns = 0;
    Nanos deadline_ns = 0;
    std::uint32_t model = 0;
    bool counted = false;
    bool open = false;  // neither answered nor dropped
};

struct Batch {
    std::uint32_t model = 0;
    Nanos started_ns = 0;
    Nanos ends_ns = 0;
    std::vector<RequestId> requests;
};

class Cluster {
  public:
    explicit Cluster(const Scenario& scenario);

    Nanos now() const { return now_; }
    const Scenario& scenario() const { return *scenario_; }
    std::size_t models() const { return scenario_->models.size(); }
    const Latency& latency(std::uint32_t model) const { return scenario_->models[model].latency; }
    Nanos objective_ns(std::uint32_t model) const { return scenario_->models[model].objective_ns; }
    const Request& request(RequestId id) const { return requests_[id]; }

    std::uint32_t executors() const { return static_cast<std::uint32_t>(executors_.size()); }
    // Whether the executor may run batches of the model.
    bool holds(std::uint32_t executor, std::uint32_t model) const;
    bool hold_all() const { return held_.empty(); }
    bool busy(std::uint32_t executor) const { return executors_[executor].busy; }
    // Neither busy nor down.
    bool idle(std::uint32_t executor) const { return executors_[executor].idle(); }
    bool down(std::uint32_t executor) const { return executors_[executor].down; }
    std::uint32_t idle_count() const { return idle_count_; }
    // The idle executor of the lowest index that holds the model; executors() when there is none.
    std::uint32_t first_idle(std::uint32_t model) const;
    bool can_start(std::uint32_t model) const;
    // Only of a busy executor.
    const Batch& running(std::uint32_t executor) const { return executors_[executor].running; }
    std::size_t staged(std::uint32_t executor) const { return executors_[executor].staged.size(); }

    // Runs `requests` (of `model`, at least one) as one batch: now on an idle executor, else after
    // what it runs and what is staged there. Its end answers them.
    void dispatch(std::uint32_t executor, std::uint32_t model, std::vector<RequestId> requests);
    // Gives up a waiting request: a miss.
    void drop(RequestId id);
    // Stops the running batch; its work is lost, its requests wait again with the caller.
    std::vector<RequestId> preempt(std::uint32_t executor);
    // The policy's only timer; kNever: none. Times not after now fire at once.
    void wake_at(Nanos at) { timer_ns_ = at; }
    // A vector to fill and dispatch: those of ended batches are used again.
    std::vector<RequestId> spare();

    // For the simulator.
    RequestId arrive(std::uint32_t model, bool counted);
    Batch finish(std::uint32_t executor, std::uint64_t generation, bool* ended);
    void recycle(std::vector<RequestId> requests);
    // What is there is lost.
    void stop(std::uint32_t executor);
    void resume(std::uint32_t executor);
    // Ends the run: what is still unanswered counts as late.
    void close();
    void set_now(Nanos now) { now_ = now; }
    Nanos timer() const { return timer_ns_; }
    EventHeap& events() { return events_; }
    Metrics& metrics() { return metrics_; }
    std::uint64_t misses() const { return misses_; }

  private:
    struct Executor {
        bool busy = false;
        bool down = false;
        bool idle() const { return !busy && !down; }
        std::uint64_t generation = 0;  // an end event of an older one was preempted
        Batch running;
        std::deque<Batch> staged;
    };

    void start(std::uint32_t executor, Batch batch);
    void settle(RequestId id, std::uint64_t ModelMetrics::*as);
    void lose(Batch batch);

    const Scenario* scenario_;
    Nanos now_ = 0;
    Nanos timer_ns_ = kNever;
    std::vector<Request> requests_;
    std::vector<RequestId> free_;
    std::vector<Executor> executors_;
    std::vector<bool> held_;  // by executor * models + model; none: all
    std::uint32_t idle_count_;
    std::vector<std::vector<RequestId>> spares_;
    EventHeap events_;
    Random noise_;
    Random failures_;
    Metrics metrics_;
    std::uint64_t misses_ = 0;
};

inline bool Cluster::holds(std::uint32_t executor, std::uint32_t model) const {
    return held_.empty() || held_[executor * models() + model];
}

inline bool Cluster::can_start(std::uint32_t model) const {
    return idle_count_ > 0 && (hold_all() || first_idle(model) < executors());
}

}  // namespace infersched::simulation
