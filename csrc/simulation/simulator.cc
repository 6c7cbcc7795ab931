#include "simulation/simulator.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace infersched::simulation {

namespace {

class Run {
  public:
    Run(const Scenario& scenario, Policy& policy);
    Metrics run();

  private:
    void schedule_arrival(std::uint32_t model);
    // Whether the run goes on.
    bool step();
    void arrive(std::uint32_t model);
    void end_batch(const Event& event);
    void schedule_faults();

    const Scenario& scenario_;
    Policy& policy_;
    Cluster cluster_;
    std::vector<Arrivals> arrivals_;
    std::uint64_t counted_ = 0;
    Nanos objective_max_ns_ = 0;
    Nanos ends_ns_ = kNever - 1;
};

Run::Run(const Scenario& scenario, Policy& policy)
    : scenario_(scenario), policy_(policy), cluster_(scenario) {
    for (std::uint32_t m = 0; m < scenario.models.size(); ++m) {
        const Model& model = scenario.models[m];
        arrivals_.emplace_back(model.arrivals, arrival_seed(scenario, m));
        objective_max_ns_ = std::max(objective_max_ns_, model.objective_ns);
        schedule_arrival(m);
    }
}

void Run::schedule_faults() {
    for (std::uint32_t e = 0; e < scenario_.setups.size(); ++e) {
        for (const Trouble& trouble : scenario_.setups[e].troubles) {
            if (trouble.factor > 0) continue;
            cluster_.events().push(trouble.from_ns, EventKind::kFaultBegins, e);
            cluster_.events().push(trouble.until_ns, EventKind::kFaultEnds, e);
        }
    }
}

Metrics Run::run() {
    schedule_faults();
    policy_.begin(cluster_);
    while (step()) {
        if (cluster_.misses() > scenario_.misses_max) {
            cluster_.metrics().stopped_early = true;
            break;
        }
    }
    cluster_.close();
    return std::move(cluster_.metrics());
}

void Run::schedule_arrival(std::uint32_t model) {
    const Nanos at = arrivals_[model].next();
    if (at != kNever) cluster_.events().push(at, EventKind::kArrival, model);
}

bool Run::step() {
    const Nanos event = cluster_.events().next();
    const Nanos timer = cluster_.timer();
    const Nanos at = std::max(std::min(event, timer), cluster_.now());
    if (at == kNever || at > ends_ns_) return false;
    cluster_.set_now(at);
    if (timer < event) {
        cluster_.wake_at(kNever);
        policy_.timer(cluster_);
        return true;
    }
    const Event next = cluster_.events().pop();
    switch (next.kind) {
        case EventKind::kArrival:
            arrive(next.index);
            break;
        case EventKind::kBatchEnd:
            end_batch(next);
            break;
        case EventKind::kFaultBegins:
            cluster_.stop(next.index);
            policy_.executor_down(cluster_, next.index);
            break;
        case EventKind::kFaultEnds:
            cluster_.resume(next.index);
            policy_.executor_up(cluster_, next.index);
            break;
        default:  // of the engine's backends only
            break;
    }
    return true;
}

void Run::arrive(std::uint32_t model) {
    schedule_arrival(model);
    const bool counted = counted_ < scenario_.requests && cluster_.now() >= scenario_.warm_up_ns;
    if (counted && ++counted_ == scenario_.requests) {
        ends_ns_ = add_saturating(cluster_.now(), objective_max_ns_ + 1);
    }
    policy_.arrived(cluster_, cluster_.arrive(model, counted));
}

void Run::end_batch(const Event& event) {
    bool ended = false;
    Batch batch = cluster_.finish(event.index, event.generation, &ended);
    if (!ended) return;
    policy_.batch_ended(cluster_, event.index, batch);
    cluster_.recycle(std::move(batch.requests));
}

}  // namespace

Metrics simulate(const Scenario& scenario, Policy& policy) { return Run(scenario, policy).run(); }

}  // namespace infersched::simulation
