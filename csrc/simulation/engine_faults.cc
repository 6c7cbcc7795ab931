// What goes wrong around the engine.
#include <algorithm>
#include <limits>

#include "simulation/engine_loop.h"

namespace infersched::simulation {

void EngineLoop::schedule_faults() {
    for (std::uint32_t f = 0; f < settings_.faults.size(); ++f) {
        events_.push(settings_.faults[f].from_ns, EventKind::kFaultBegins, f);
    }
}

void EngineLoop::configure_model(std::uint32_t model) {
    const ModelSetup& setup = setups_[model];
    for (std::uint32_t b = 0; b < outages_.size(); ++b) {
        const auto here = std::find_if(setup.placements.begin(), setup.placements.end(),
                                       [=](const engine::Placement& p) { return p.backend == b; });
        truths_.placed(model, b, here != setup.placements.end() && here->ready);
    }
    std::vector<engine::Placement> told = setup.placements;
    for (engine::Placement& placement : told) {
        const auto hidden = [&](std::uint32_t device) {
            return settings_.devices[device].poll_ns == 0;
        };
        std::vector<std::uint32_t>& all = placement.devices;
        all.erase(std::remove_if(all.begin(), all.end(), hidden), all.end());
    }
    engine_.event([&](engine::Engine& engine) {
        engine.configure_model(model, setup.policy, told, engine_now());
    });
}

void EngineLoop::set_available(std::uint32_t backend, int change, const Fault& fault) {
    for (std::uint32_t b = 0; b < outages_.size(); ++b) {
        if (backend != engine::kNoBackend && backend != b) continue;
        const bool was = outages_[b] == 0;
        outages_[b] += change;
        const bool is = outages_[b] == 0;
        if (was == is) continue;
        truths_.backend(b, is);
        engine_.event([&](engine::Engine& engine) { engine.set_backend(b, is, engine_now()); });
        if (is) continue;
        for (const engine::BatchHandle lost : backends_.lose(b, now_)) {
            ++metrics_.failed_batches;
            truths_.returned(lost);
            engine_.event([&](engine::Engine& engine) {
                engine.dispatch_failed(lost, fault.failure, fault.code, engine_now());
            });
        }
    }
}

void EngineLoop::begin(const Fault& fault) {
    const auto index = static_cast<std::uint32_t>(&fault - settings_.faults.data());
    events_.push(std::max(fault.until_ns, now_), EventKind::kFaultEnds, index);
    engine::ModelPolicy& policy = setups_[fault.model].policy;
    std::vector<engine::Placement>& placements = setups_[fault.model].placements;
    switch (fault.kind) {
        case FaultKind::kDown:
            set_available(fault.backend, 1, fault);
            break;
        case FaultKind::kCancels:
            cancel_some(fault.factor);
            break;
        case FaultKind::kClockJump:
            epoch_ns_ += fault.shift_ns;
            // The timer is set to a time of that clock.
            if (wake_ns_ != kNever) wake_ns_ = std::max(wake_ns_ - fault.shift_ns, now_);
            break;
        case FaultKind::kNonsense:
            absurd_ = fault.factor;
            send_stale_handles();
            break;
        case FaultKind::kDraining:
            engine_.event([](engine::Engine& engine) { engine.set_draining(true); });
            break;
        case FaultKind::kRemoved:
            policy.in_use = false;
            configure_model(fault.model);
            break;
        case FaultKind::kUnplaced:
            for (engine::Placement& p : placements) p.ready &= p.backend != fault.backend;
            configure_model(fault.model);
            break;
        case FaultKind::kInstances:
            for (engine::Placement& p : placements) ++p.instances;
            configure_model(fault.model);
            break;
        default:
            backends_.begin(fault);
    }
}

void EngineLoop::end(const Fault& fault) {
    ModelSetup& setup = setups_[fault.model];
    switch (fault.kind) {
        case FaultKind::kDown:
            set_available(fault.backend, -1, fault);
            break;
        case FaultKind::kCancels:
        case FaultKind::kClockJump:
            break;
        case FaultKind::kNonsense:
            send_stale_handles();
            absurd_ = 0;
            break;
        case FaultKind::kDraining:
            engine_.event([](engine::Engine& engine) { engine.set_draining(false); });
            break;
        case FaultKind::kRemoved:
            setup.policy.in_use = true;
            configure_model(fault.model);
            break;
        case FaultKind::kUnplaced:
            for (engine::Placement& p : setup.placements) p.ready |= p.backend == fault.backend;
            configure_model(fault.model);
            break;
        case FaultKind::kInstances:
            for (engine::Placement& p : setup.placements) --p.instances;
            configure_model(fault.model);
            break;
        default:
            backends_.end(fault);
    }
}

void EngineLoop::cancel_some(double part) {
    for (const Request& request : requests_) {
        if (!request.open || request.handle == 0 || faults_random_.unit() > part) continue;
        ++metrics_.cancels;
        truths_.cancelled(request.handle);
        const engine::RequestHandle handle = request.handle;
        engine_.event([&](engine::Engine& engine) { engine.cancel(handle, engine_now()); });
    }
}

// Times that no honest clock gives. The deadline a client is judged by stays.
void EngineLoop::make_absurd(engine::Request& request) {
    constexpr Nanos kLeast = std::numeric_limits<Nanos>::min();
    const Nanos now = engine_now();
    const Nanos times[] = {kLeast,        -1,         0,     1, now - kSecond, now, now + 1,
                           now + kSecond, kNever - 1, kNever};
    constexpr std::size_t kTimes = sizeof(times) / sizeof(times[0]);
    const std::uint64_t chance = faults_random_.next();
    request.arrival = times[chance % kTimes];
    if ((chance & 1u << 16) != 0) request.deadline = times[(chance >> 8) % kTimes];
    if ((chance & 1u << 17) != 0) request.priority = chance;
    if ((chance & 1u << 18) != 0) request.tenant = static_cast<std::uint32_t>(chance >> 32);
    if ((chance & 7u << 19) == 0) request.model = static_cast<std::uint32_t>(chance >> 32);
}

void EngineLoop::send_stale_handles() {
    for (int i = 0; i < 10; ++i) {
        // Slots that exist, with a generation that does not, and the other way round.
        const std::uint64_t handle = faults_random_.next() >> (i % 2 == 0 ? 0 : 60);
        const engine::FailureKind failure = engine::FailureKind::kNothingRan;
        engine_.event([&](engine::Engine& engine) {
            engine.cancel(handle, engine_now());
            engine.complete(handle, engine_now());
            engine.dispatch_failed(handle, failure, StatusCode::kUnavailable, engine_now());
        });
    }
}

}  // namespace infersched::simulation
