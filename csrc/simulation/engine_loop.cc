#include "simulation/engine_loop.h"

#include <algorithm>
#include <utility>

namespace infersched::simulation {

namespace {

// A wake that is due at once: a timer takes that long to fire.
constexpr Nanos kTimerNs = kMicrosecond;
// How long after the end of a run with faults clients wait for what is left, and how long may pass
// then and later until another one is answered.
constexpr Nanos kDrainNs = 600 * kSecond;
// Nor do they wait for more steps: where much fails and is sent again, such a time is hours of
// ours.
constexpr std::uint64_t kDrainSteps = 20'000;
constexpr std::uint64_t kClassStream = 0x636c61737365u;
constexpr std::uint64_t kFaultStream = 0x6661756c7473u;

}  // namespace

EngineLoop::EngineLoop(const Scenario& scenario, const EngineSettings& settings)
    : scenario_(scenario),
      settings_(settings),
      setups_(setups_of(scenario, settings)),
      truths_(setups_),
      engine_(settings.check_truths ? &truths_ : nullptr),
      backends_(scenario, settings, setups_, events_),
      classes_random_(scenario.seed ^ kClassStream),
      faults_random_(scenario.seed ^ kFaultStream),
      epoch_ns_(kEpochNs) {
    metrics_.totals.models.resize(scenario.models.size());
    for (std::uint32_t m = 0; m < scenario.models.size(); ++m) {
        const Model& model = scenario.models[m];
        arrivals_.emplace_back(model.arrivals, arrival_seed(scenario, m));
        metrics_.classes.emplace_back(setups_[m].classes.size());
        objective_max_ns_ = std::max(objective_max_ns_, model.objective_ns);
        double shares = 0;
        for (const RequestClass& kind : setups_[m].classes) {
            shares += kind.share;
            if (kind.objective_ns == kNever) continue;
            objective_max_ns_ = std::max(objective_max_ns_, kind.objective_ns);
        }
        share_sums_.push_back(shares);
        schedule_arrival(m);
    }
    configure();
    schedule_faults();
}

void EngineLoop::configure() {
    std::uint32_t backends = 0;
    for (const ModelSetup& setup : setups_) {
        for (const engine::Placement& p : setup.placements) {
            backends = std::max(backends, p.backend + 1);
        }
    }
    outages_.resize(backends);
    if (!settings_.tenants.empty()) {
        engine_.event([&](engine::Engine& engine) { engine.set_tenants(settings_.tenants); });
    }
    for (std::uint32_t m = 0; m < setups_.size(); ++m) configure_model(m);
    for (std::uint32_t d = 0; d < settings_.devices.size(); ++d) {
        if (settings_.devices[d].poll_ns > 0) read_device(d);
    }
    for (std::uint32_t b = 0; b < backends; ++b) {
        engine_.event([&](engine::Engine& engine) { engine.set_backend(b, true, engine_now()); });
    }
}

EngineMetrics EngineLoop::run() {
    while (turn()) {
        if (misses_ > scenario_.misses_max) {
            metrics_.totals.stopped_early = true;
            break;
        }
        if (!truths_.broken().empty()) break;
    }
    close();
    if (settings_.check_truths) drain();
    metrics_.broken = truths_.broken();
    return std::move(metrics_);
}

void EngineLoop::schedule_arrival(std::uint32_t model) {
    const Nanos at = arrivals_[model].next();
    if (at != kNever) events_.push(at, EventKind::kArrival, model);
}

bool EngineLoop::turn() {
    const Nanos at = std::max(std::min(events_.next(), wake_ns_), now_);
    if (at == kNever || at > std::min(ends_ns_, settings_.stop_ns)) return false;
    if (add_saturating(at, epoch_ns_) > kClockEndNs) return false;
    now_ = at;
    if (wake_ns_ <= now_) wake_ns_ = kNever;
    ended_.clear();
    tried_ns_ = now_;
    while (events_.next() <= now_) handle(events_.pop());
    engine_.step(engine_now());
    ++metrics_.steps;
    act();
    return true;
}

void EngineLoop::handle(const Event& event) {
    Backends::Reply reply;
    switch (event.kind) {
        case EventKind::kArrival:
            if (arriving_) arrive(event.index);
            break;
        case EventKind::kFaultBegins:
            ++metrics_.faults_begun;
            begin(settings_.faults[event.index]);
            break;
        case EventKind::kFaultEnds:
            end(settings_.faults[event.index]);
            break;
        case EventKind::kReading:
            --readings_;
            read_device(event.index);
            break;
        default:
            if (backends_.handle(event, now_, &reply)) back(reply);
    }
}

void EngineLoop::read_device(std::uint32_t device) {
    const DeviceSetup& setup = settings_.devices[device];
    engine::DeviceMemory memory;
    memory.known = true;
    memory.free_bytes = backends_.arenas().free_bytes(device, now_);
    memory.total_bytes = setup.total_bytes;
    memory.headroom_bytes = setup.headroom_bytes;
    memory.measured_at = engine_now();
    engine_.event([&](engine::Engine& engine) { engine.set_device(device, memory, engine_now()); });
    // When nothing else will happen, the run is over.
    if (events_.size() <= readings_ && engine_.get().requests_inflight() == 0) return;
    ++readings_;
    events_.push(now_ + setup.poll_ns, EventKind::kReading, device);
}

std::uint32_t EngineLoop::pick_class(std::uint32_t model) {
    const std::vector<RequestClass>& classes = setups_[model].classes;
    if (classes.size() == 1) return 0;
    double left = classes_random_.unit() * share_sums_[model];
    std::uint32_t kind = 0;
    while (kind + 1 < classes.size() && left > classes[kind].share) left -= classes[kind++].share;
    return kind;
}

std::uint32_t EngineLoop::add_request(std::uint32_t model, std::uint32_t kind) {
    const bool counted = counted_ < scenario_.requests && now_ >= scenario_.warm_up_ns;
    if (counted && ++counted_ == scenario_.requests) {
        ends_ns_ = add_saturating(now_, objective_max_ns_ + 1);
    }
    auto id = static_cast<std::uint32_t>(requests_.size());
    if (free_.empty()) {
        requests_.emplace_back();
    } else {
        id = free_.back();
        free_.pop_back();
    }
    Nanos objective = setups_[model].classes[kind].objective_ns;
    if (objective == 0) objective = scenario_.models[model].objective_ns;
    const Nanos deadline = add_saturating(now_, objective);
    requests_[id] = {0, arrived_++, now_, deadline, model, kind, counted, true};
    if (settings_.keep_fates) {
        metrics_.fates.push_back(Fate::kUncounted);
        metrics_.arrivals_ns.push_back(now_);
    }
    ++metrics_.totals.arrived;
    metrics_.totals.count(scenario_, now_, counted, &Interval::offered);
    if (counted) {
        ++metrics_.totals.models[model].offered;
        ++metrics_.classes[model][kind].offered;
    }
    return id;
}

void EngineLoop::arrive(std::uint32_t model) {
    schedule_arrival(model);
    const std::uint32_t kind = pick_class(model);
    const RequestClass& of = setups_[model].classes[kind];
    const std::uint32_t id = add_request(model, kind);
    engine::Request request;
    request.user = id;
    request.model = model;
    request.rows = of.rows;
    request.bytes = of.rows;
    request.priority = of.priority;
    request.tenant = of.tenant;
    request.arrival = engine_now();
    request.deadline = add_saturating(requests_[id].deadline_ns, epoch_ns_);
    request.unconditional = requests_[id].ordinal == settings_.forced_ordinal;
    request.kept = requests_[id].ordinal == settings_.kept_ordinal;
    if (of.signatures > 1) request.signature = classes_random_.next() % of.signatures;
    request.row_bytes = of.row_bytes;
    request.signature |= of.row_bytes << 32;
    if (absurd_ > 0 && faults_random_.unit() <= absurd_) make_absurd(request);
    const engine::Admission admission = engine_.submit(request, engine_now());
    requests_[id].handle = admission.handle;
    if (admission.handle == 0) settle(id, Fate::kRefused);
}

void EngineLoop::back(const Backends::Reply& reply) {
    const engine::BatchHandle handle = reply.batch.handle;
    truths_.returned(handle);
    if (reply.failed) {
        ++metrics_.failed_batches;
        tried_ns_ = std::min(tried_ns_, now_ - reply.held_ns - settings_.wire_ns);
        engine_.event([&](engine::Engine& engine) {
            engine.dispatch_failed(handle, reply.failure, reply.code, engine_now());
        });
    } else {
        ended_.push_back({handle, reply.held_ns});
        engine_.event([&](engine::Engine& engine) { engine.complete(handle, engine_now()); });
    }
}

void EngineLoop::act() {
    for (const engine::Action& action : engine_.get().actions()) {
        switch (action.kind) {
            case engine::ActionKind::kDispatch:
                send(action);
                break;
            case engine::ActionKind::kAnswer:
                answer(action);
                break;
            case engine::ActionKind::kWake:
                wake_ns_ =
                    action.at == kNever ? kNever : std::max(action.at - epoch_ns_, now_ + kTimerNs);
                break;
            case engine::ActionKind::kAbandon:
                backends_.abandon(action.batch, action.backend);
                break;
        }
    }
    engine_.clear_actions();
}

void EngineLoop::send(const engine::Action& action) {
    const engine::BatchMember& first = engine_.get().members()[action.member_begin];
    backends_.send({action.batch, action.model, action.backend, action.rows_padded,
                    class_of(requests_[first.user]).row_bytes},
                   now_);
}

void EngineLoop::answer(const engine::Action& action) {
    const Request& request = requests_[action.user];
    switch (action.outcome) {
        case engine::Outcome::kCompleted:
            break;
        case engine::Outcome::kExpired:
            return settle(action.user, action.reason == engine::Reason::kExpiredInFlight
                                           ? Fate::kLate
                                           : Fate::kExpired);
        case engine::Outcome::kCancelled:
            return settle(action.user, Fate::kLeft);
        default:
            note_memory_failure(action);
            return settle(action.user, Fate::kFailed);
    }
    if (request.counted) {
        const Nanos took = now_ - request.arrived_ns;
        Nanos held = 0;
        for (const Ended& ended : ended_) {
            if (ended.batch == action.batch) held = ended.held_ns;
        }
        metrics_.latencies.add(took);
        metrics_.waits.add(took - held - 2 * settings_.wire_ns);
    }
    settle(action.user, now_ <= request.deadline_ns ? Fate::kInTime : Fate::kLate);
}

// What the request needs at the least: the smallest batch, or all its rows where it cannot be cut,
// be it that a reply could not.
void EngineLoop::note_memory_failure(const engine::Action& action) {
    if (action.reason != engine::Reason::kDeviceMemory) return;
    ++metrics_.memory_failures;
    const engine::ModelPolicy& policy = setups_[action.model].policy;
    std::uint32_t rows = action.rows;
    if (engine_.get().queue_status(action.model).merging)
        rows = policy.mandatory_rows.empty() ? 1 : policy.mandatory_rows.front();
    metrics_.memory_failures_fitting += backends_.arenas().fits(
        action.model, {rows, class_of(requests_[action.user]).row_bytes}, tried_ns_, now_);
}

void EngineLoop::settle(std::uint64_t user, Fate fate) {
    Request& request = requests_[user];
    if (!request.open) return;
    request.open = false;
    free_.push_back(static_cast<std::uint32_t>(user));
    if (settings_.keep_fates) metrics_.fates[request.ordinal] = fate;
    // What was left when the run ended was judged then.
    if (!arriving_) return;
    if (fate == Fate::kInTime) {
        metrics_.totals.count(scenario_, request.arrived_ns, request.counted, &Interval::in_time);
    } else if (fate == Fate::kLeft) {
        metrics_.totals.count(scenario_, request.arrived_ns, request.counted, &Interval::offered,
                              -1);
    }
    if (!request.counted) return;
    ClassMetrics& kind = metrics_.classes[request.model][request.kind];
    if (fate == Fate::kInTime) {
        ++kind.in_time;
        ++metrics_.totals.models[request.model].in_time;
    } else {
        count_miss(request, fate, kind);
    }
}

void EngineLoop::count_miss(const Request& request, Fate fate, ClassMetrics& kind) {
    ModelMetrics& model = metrics_.totals.models[request.model];
    if (fate == Fate::kLeft || fate == Fate::kUnanswered) {
        ++(fate == Fate::kLeft ? kind.cancelled : kind.unanswered);
        --model.offered;
        return;
    }
    ++misses_;
    if (fate == Fate::kLate) {
        ++kind.late;
        ++model.late;
        return;
    }
    ++model.dropped;
    ++(fate == Fate::kRefused ? kind.refused : fate == Fate::kExpired ? kind.expired : kind.failed);
}

void EngineLoop::close() {
    for (const Request& request : requests_) {
        if (!request.open) continue;
        // What has no deadline may be answered later: that says nothing yet.
        const bool due = request.deadline_ns != kNever;
        if (!due) {
            metrics_.totals.count(scenario_, request.arrived_ns, request.counted,
                                  &Interval::offered, -1);
        }
        if (!request.counted) continue;
        const Fate fate = due ? Fate::kLate : Fate::kUnanswered;
        count_miss(request, fate, metrics_.classes[request.model][request.kind]);
        if (settings_.keep_fates) metrics_.fates[request.ordinal] = fate;
    }
    for (Request& request : requests_) request.counted = false;
    for (std::size_t m = 0; m < setups_.size(); ++m) {
        metrics_.totals.models[m].batches = backends_.counts()[m].batches;
        metrics_.totals.models[m].batched_rows = backends_.counts()[m].batched_rows;
        for (std::uint32_t d = 0; d < settings_.devices.size(); ++d) {
            metrics_.memory.push_back(engine_.get().memory_status(m, d));
        }
    }
    metrics_.totals.ended_ns = now_;
}

// Nothing arrives any more, every fault and the drift end: all must be answered. A world may have
// more work left than clients wait for; it must go on until they cancel.
void EngineLoop::drain() {
    arriving_ = false;
    backends_.end_drift(now_);
    const Nanos patience_ends_ns = add_saturating(now_, kDrainNs);
    ends_ns_ = patience_ends_ns;
    const std::uint64_t patience_steps = metrics_.steps + kDrainSteps;
    std::uint64_t inflight = engine_.get().requests_inflight();
    while (truths_.broken().empty() && turn()) {
        const std::uint64_t left = engine_.get().requests_inflight();
        if (left == 0 && backends_.out() == 0) break;
        truths_.require(metrics_.steps <= patience_steps + kDrainSteps,
                        "a run ends soon after its clients have left");
        const bool leaving = metrics_.steps == patience_steps;
        if (left >= inflight && !leaving) continue;
        inflight = left;
        ends_ns_ = add_saturating(now_, kDrainNs);
        if (now_ <= patience_ends_ns && !leaving) continue;
        cancel_some(1.0);
        wake_ns_ = now_;
    }
    truths_.ended(engine_.get());
}

}  // namespace infersched::simulation
