#include "simulation/engine_run.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "simulation/event_heap.h"
#include "simulation/execution.h"

namespace infersched::simulation {

namespace {

// The engine's time at the start of the simulation: a monotonic clock is not near 0.
constexpr Nanos kEpochNs = 1000 * kSecond;
// A wake that is due at once: a timer takes that long to fire.
constexpr Nanos kTimerNs = kMicrosecond;

struct FreeMemory {
    void operator()(void* memory) const { std::free(memory); }
};

// A page of megabytes, of which a run touches little.
std::unique_ptr<engine::CountersPage, FreeMemory> fresh_page() {
    void* memory = std::calloc(1, sizeof(engine::CountersPage));
    return std::unique_ptr<engine::CountersPage, FreeMemory>(
        static_cast<engine::CountersPage*>(memory));
}

class EngineRun {
  public:
    EngineRun(const Scenario& scenario, const EngineSettings& settings);
    Metrics run();

  private:
    struct Request {
        Nanos deadline_ns = 0;
        std::uint32_t model = 0;
        bool counted = false;
        bool open = false;
    };
    struct Batch {
        engine::BatchHandle handle = 0;
        std::uint32_t model = 0;
        std::uint32_t rows = 0;
    };
    // Runs what it is sent one after the other.
    struct Executor {
        bool busy = false;
        Batch running;
        std::deque<Batch> waiting;
    };

    Nanos engine_now() const { return now_ + kEpochNs; }
    void schedule_arrival(std::uint32_t model);
    void configure();
    // All events of the next moment; whether the run goes on.
    bool turn();
    void arrive(std::uint32_t model);
    void end_batch(std::uint32_t executor);
    void start(std::uint32_t executor, const Batch& batch);
    void act();
    void answer(const engine::Action& action);
    void settle(std::uint64_t user, std::uint64_t ModelMetrics::*as);
    void close();

    const Scenario& scenario_;
    const EngineSettings& settings_;
    std::unique_ptr<engine::CountersPage, FreeMemory> page_ = fresh_page();
    engine::Engine engine_;
    EventHeap events_;
    Random noise_;
    std::vector<Arrivals> arrivals_;
    std::vector<Executor> executors_;
    std::vector<Request> requests_;
    std::vector<std::uint32_t> free_;
    Metrics metrics_;
    Nanos now_ = 0;
    Nanos wake_ns_ = kNever;
    Nanos ends_ns_ = kNever - 1;
    Nanos objective_max_ns_ = 0;
    std::uint64_t counted_ = 0;
    std::uint64_t misses_ = 0;
};

EngineRun::EngineRun(const Scenario& scenario, const EngineSettings& settings)
    : scenario_(scenario),
      settings_(settings),
      engine_(page_.get()),
      noise_(scenario.seed ^ kNoiseStream),
      executors_(scenario.executors) {
    metrics_.models.resize(scenario.models.size());
    for (std::uint32_t m = 0; m < scenario.models.size(); ++m) {
        const Model& model = scenario.models[m];
        arrivals_.emplace_back(model.arrivals, arrival_seed(scenario, m));
        objective_max_ns_ = std::max(objective_max_ns_, model.objective_ns);
        schedule_arrival(m);
    }
    configure();
}

void EngineRun::configure() {
    for (std::uint32_t m = 0; m < scenario_.models.size(); ++m) {
        engine::ModelPolicy policy;
        policy.in_use = true;
        policy.rows_max = settings_.rows_max;
        policy.slo_ns = scenario_.models[m].objective_ns;
        std::vector<engine::Placement> placements;
        for (std::uint32_t e = 0; e < scenario_.executors; ++e) {
            engine::Placement placement;
            placement.backend = e;
            placement.ready = true;
            if (scenario_.models.size() > 1) placement.executor_group = e;
            placements.push_back(placement);
        }
        engine_.configure_model(m, policy, placements, engine_now());
    }
    for (std::uint32_t e = 0; e < scenario_.executors; ++e) {
        engine_.set_backend(e, true, engine_now());
    }
}

Metrics EngineRun::run() {
    while (turn()) {
        if (misses_ > scenario_.misses_max) {
            metrics_.stopped_early = true;
            break;
        }
    }
    close();
    return std::move(metrics_);
}

void EngineRun::schedule_arrival(std::uint32_t model) {
    const Nanos at = arrivals_[model].next();
    if (at != kNever) events_.push(at, EventKind::kArrival, model);
}

bool EngineRun::turn() {
    const Nanos at = std::max(std::min(events_.next(), wake_ns_), now_);
    if (at == kNever || at > ends_ns_) return false;
    now_ = at;
    if (wake_ns_ <= now_) wake_ns_ = kNever;
    while (events_.next() <= now_) {
        const Event event = events_.pop();
        if (event.kind == EventKind::kArrival) {
            arrive(event.index);
        } else {
            end_batch(event.index);
        }
        if (settings_.check_invariants) engine_.check_invariants();
    }
    engine_.step(engine_now());
    if (settings_.check_invariants) engine_.check_invariants();
    act();
    return true;
}

void EngineRun::arrive(std::uint32_t model) {
    schedule_arrival(model);
    const bool counted = counted_ < scenario_.requests && now_ >= scenario_.warm_up_ns;
    if (counted && ++counted_ == scenario_.requests) {
        ends_ns_ = add_saturating(now_, objective_max_ns_ + 1);
    }
    std::uint32_t id = static_cast<std::uint32_t>(requests_.size());
    if (free_.empty()) {
        requests_.emplace_back();
    } else {
        id = free_.back();
        free_.pop_back();
    }
    const Nanos deadline = add_saturating(now_, scenario_.models[model].objective_ns);
    requests_[id] = {deadline, model, counted, true};
    ++metrics_.arrived;
    if (counted) ++metrics_.models[model].offered;
    engine::Request request;
    request.user = id;
    request.model = model;
    request.arrival = engine_now();
    request.deadline = add_saturating(deadline, kEpochNs);
    const engine::Admission admission = engine_.submit(request, engine_now());
    if (admission.handle == 0) settle(id, &ModelMetrics::dropped);
}

void EngineRun::start(std::uint32_t executor, const Batch& batch) {
    const Latency& latency = scenario_.models[batch.model].latency;
    Executor& on = executors_[executor];
    on.busy = true;
    on.running = batch;
    const Nanos holds = execution_ns(latency, batch.rows, scenario_.noise_sigma, noise_);
    events_.push(now_ + holds, EventKind::kBatchEnd, executor);
    if (now_ < scenario_.warm_up_ns) return;
    ++metrics_.models[batch.model].batches;
    metrics_.models[batch.model].batched_rows += batch.rows;
}

void EngineRun::end_batch(std::uint32_t executor) {
    Executor& on = executors_[executor];
    const Batch ended = on.running;
    on.busy = false;
    if (!on.waiting.empty()) {
        const Batch next = on.waiting.front();
        on.waiting.pop_front();
        start(executor, next);
    }
    engine_.complete(ended.handle, engine_now());
}

void EngineRun::act() {
    for (const engine::Action& action : engine_.actions()) {
        switch (action.kind) {
            case engine::ActionKind::kDispatch: {
                const Batch batch{action.batch, action.model, action.rows_padded};
                Executor& on = executors_[action.backend];
                if (on.busy) {
                    on.waiting.push_back(batch);
                } else {
                    start(action.backend, batch);
                }
                break;
            }
            case engine::ActionKind::kAnswer:
                answer(action);
                break;
            case engine::ActionKind::kWake:
                wake_ns_ =
                    action.at == kNever ? kNever : std::max(action.at - kEpochNs, now_ + kTimerNs);
                break;
            case engine::ActionKind::kAbandon:
                break;
        }
    }
    engine_.clear_actions();
}

void EngineRun::answer(const engine::Action& action) {
    if (action.outcome != engine::Outcome::kCompleted) {
        const bool ran = action.reason == engine::Reason::kExpiredInFlight;
        settle(action.user, ran ? &ModelMetrics::late : &ModelMetrics::dropped);
        return;
    }
    const bool in_time = now_ <= requests_[action.user].deadline_ns;
    settle(action.user, in_time ? &ModelMetrics::in_time : &ModelMetrics::late);
}

void EngineRun::settle(std::uint64_t user, std::uint64_t ModelMetrics::*as) {
    Request& request = requests_[user];
    request.open = false;
    free_.push_back(static_cast<std::uint32_t>(user));
    if (!request.counted) return;
    ++(metrics_.models[request.model].*as);
    if (as != &ModelMetrics::in_time) ++misses_;
}

void EngineRun::close() {
    for (const Request& request : requests_) {
        if (request.open && request.counted) ++metrics_.models[request.model].late;
    }
    metrics_.ended_ns = now_;
}

}  // namespace

std::string problem_of(const Scenario& scenario, const EngineSettings& settings) {
    std::string problem = problem_of(scenario);
    if (!problem.empty()) return problem;
    if (scenario.executors > engine::kCountersBackendsMax) {
        return "the engine has at most 256 backends";
    }
    if (scenario.models.size() > engine::kCountersModelsMax) {
        return "the engine has at most 4096 models";
    }
    if (settings.rows_max < 1 || settings.rows_max > Latency::kRowsMax) {
        return "a batch has 1 to 1024 rows";
    }
    return "";
}

Metrics simulate_engine(const Scenario& scenario, const EngineSettings& settings) {
    return EngineRun(scenario, settings).run();
}

}  // namespace infersched::simulation
