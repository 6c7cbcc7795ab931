#include "simulation/decision_load.h"

#include <algorithm>

namespace infersched::simulation {

namespace {

constexpr Nanos kBatchNs = kMillisecond;
// No queue here takes as long as the shortest deadline.
constexpr Nanos kDeadlineMinNs = 1000 * kSecond;
constexpr std::uint64_t kDeadlineSpreadNs = 1'000'000u * std::uint64_t{kSecond};
// Batches of every model before anything is measured: the engine learns how long they take.
constexpr std::uint64_t kLearnedBatches = 4;
constexpr std::uint64_t kLearnedMin = 1000;  // requests

}  // namespace

DecisionLoad::DecisionLoad(const DecisionSettings& settings)
    : settings_(settings), random_(settings.seed) {
    engine::ModelPolicy policy;
    policy.in_use = true;
    policy.rows_max = settings.rows_max;
    policy.load_aware = settings.load_aware;
    policy.queue_requests_max = UINT64_MAX;
    policy.queue_bytes_max = UINT64_MAX;
    engine::Placement placement;
    placement.ready = true;
    placement.executor_group = 0;
    engine_.event([&](engine::Engine& engine) {
        for (std::uint32_t m = 0; m < settings.models; ++m) {
            engine.configure_model(m, policy, {placement}, now_);
        }
        engine.set_backend(0, true, now_);
    });
}

void DecisionLoad::submit(std::uint32_t model) {
    engine::Request request;
    request.user = model;
    request.model = model;
    request.arrival = now_;
    const auto spread = static_cast<Nanos>(random_.next() % kDeadlineSpreadNs);
    request.deadline = now_ + kDeadlineMinNs + spread;
    sound_ &= engine_.submit(request, now_).handle != 0;
}

void DecisionLoad::fill() {
    for (std::uint64_t i = 0; i < settings_.queue_length; ++i) {
        submit(static_cast<std::uint32_t>(i % settings_.models));
    }
    run(std::max(kLearnedMin, kLearnedBatches * settings_.rows_max * settings_.models));
}

bool DecisionLoad::run(std::uint64_t requests) {
    const std::uint64_t until = completed_ + requests;
    while (completed_ < until && sound_ && turn()) {
    }
    return sound_ && completed_ >= until;
}

// Whether anything goes on.
bool DecisionLoad::turn() {
    for (const std::uint32_t model : again_) submit(model);
    again_.clear();
    engine_.step(now_);
    for (const engine::Action& action : engine_.get().actions()) {
        if (action.kind == engine::ActionKind::kDispatch) out_.push_back(action.batch);
        if (action.kind == engine::ActionKind::kWake) wake_ = action.at;
        if (action.kind != engine::ActionKind::kAnswer) continue;
        again_.push_back(action.model);
        sound_ &= action.outcome == engine::Outcome::kCompleted;
        ++completed_;
    }
    engine_.clear_actions();
    if (out_.empty()) {
        // The engine waits for more requests.
        now_ = wake_ == kNever ? now_ : std::max(now_ + 1, wake_);
        return !again_.empty() || wake_ != kNever;
    }
    now_ += kBatchNs;
    engine_.event([&](engine::Engine& engine) { engine.complete(out_.front(), now_); });
    out_.pop_front();
    return true;
}

}  // namespace infersched::simulation
