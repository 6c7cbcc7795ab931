#include "simulation/truths.h"

#include <algorithm>

namespace infersched::simulation {
namespace {

// Every level may fill the queue by itself.
std::size_t queue_levels(const engine::ModelPolicy& policy) {
    const std::size_t tritons = policy.triton != nullptr ? policy.triton->levels.size() : 0;
    return std::max<std::size_t>({policy.priority_levels, tritons, 1});
}

}  // namespace

void Truths::submitted(const engine::Request& request, const engine::Admission& admission) {
    if (admission.handle == 0) {
        require(admission.reason != engine::Reason::kNone, "a refusal has a reason");
        require(admission.retry_after_ns >= 0, "a time to retry is not negative");
        return;
    }
    require(open_.count(request.user) == 0, "a request in flight has a name of its own");
    require(users_.emplace(admission.handle, request.user).second, "handles are told apart");
    open_[request.user] = {admission.handle, request.deadline, request.model, request.rows, false};
    if (request.deadline != kNever) deadlines_.emplace(request.deadline, request.user);
}

void Truths::cancelled(engine::RequestHandle handle) {
    const auto user = users_.find(handle);
    if (user == users_.end()) return;
    open_[user->second].cancelled = true;
    leaving_.insert(user->second);
}

void Truths::backend(std::uint32_t backend, bool available) {
    if (available) {
        unavailable_.erase(backend);
    } else {
        unavailable_.insert(backend);
    }
}

void Truths::placed(std::uint32_t model, std::uint32_t backend, bool placed) {
    const std::uint64_t key = std::uint64_t{model} << 32 | backend;
    if (placed) {
        unplaced_.erase(key);
    } else {
        unplaced_.insert(key);
    }
}

void Truths::returned(engine::BatchHandle batch) { out_.erase(batch); }

void Truths::answered(const engine::Action& action) {
    const auto found = open_.find(action.user);
    require(found != open_.end(), "a request is answered once");
    if (found == open_.end()) return;
    const Open& request = found->second;
    require(request.handle == action.request, "an answer names its request");
    const bool cancelled = action.outcome == engine::Outcome::kCancelled;
    require(cancelled == request.cancelled, "what was cancelled is answered so, and nothing else");
    deadlines_.erase({request.deadline, action.user});
    leaving_.erase(action.user);
    users_.erase(request.handle);
    open_.erase(found);
}

void Truths::dispatched(const engine::Engine& engine, const engine::Action& action, Nanos now) {
    require(out_.insert(action.batch).second, "a batch is sent once");
    require(unavailable_.count(action.backend) == 0, "nothing goes to a backend that is away");
    require(on(unplaced_, action.model, action.backend), "a batch goes where its model is");
    require(action.model < models_.size(), "a batch is of a model");
    if (action.model >= models_.size()) return;
    require(action.member_count > 0 && action.rows > 0, "a batch has members");
    require(action.rows_padded >= action.rows, "padding adds rows");
    std::uint64_t rows = 0;
    for (std::uint32_t i = 0; i < action.member_count; ++i) {
        const engine::BatchMember& member = engine.members()[action.member_begin + i];
        rows += member.rows;
        const auto found = open_.find(member.user);
        require(found != open_.end(), "a member of a batch waits for its answer");
        if (found == open_.end()) continue;
        const Open& request = found->second;
        require(request.handle == member.request, "a member names its request");
        require(request.model == action.model, "a batch is of one model");
        require(member.row_begin + member.rows <= request.rows, "a part is within its request");
        require(request.deadline > now, "nothing is sent that is too late already");
        require(!request.cancelled, "nothing is sent that nobody wants");
    }
    require(rows == action.rows, "the rows of a batch are its members'");
    const engine::ModelPolicy& policy = models_[action.model].policy;
    require(rows <= policy.rows_max || action.member_count == 1, "a batch is within its bound");
}

void Truths::stepped(const engine::Engine& engine, Nanos now) {
    bool wakes = false;
    for (const engine::Action& action : engine.actions()) {
        switch (action.kind) {
            case engine::ActionKind::kAnswer:
                answered(action);
                break;
            case engine::ActionKind::kDispatch:
                dispatched(engine, action, now);
                break;
            case engine::ActionKind::kWake:
                require(!wakes, "one wake is told");
                wakes = true;
                require(action.at > now, "a wake is in the future");
                break;
            case engine::ActionKind::kAbandon:
                out_.erase(action.batch);
                break;
        }
    }
    require(deadlines_.empty() || deadlines_.begin()->first > now,
            "nothing is kept after its deadline longer than a step");
    require(leaving_.empty(), "nothing is kept after its cancel longer than a step");
    require(open_.size() == engine.requests_inflight(), "what is in flight was not answered");
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
        const engine::QueueStatus queue = engine.queue_status(m);
        const engine::ModelPolicy& policy = models_[m].policy;
        const std::size_t levels = queue_levels(policy);
        require(queue.requests <= policy.queue_requests_max * levels, "a queue is bounded");
        require(queue.bytes <= policy.queue_bytes_max * levels, "its bytes are bounded");
    }
}

void Truths::ended(const engine::Engine& engine) {
    std::string left;
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
        const engine::QueueStatus queue = engine.queue_status(m);
        if (queue.requests == 0 && queue.inflight_batches == 0) continue;
        left += " model " + std::to_string(m) + ": " + std::to_string(queue.requests) +
                " queued, " + std::to_string(queue.inflight_batches) + " batches out;";
    }
    require(open_.empty() && engine.requests_inflight() == 0,
            ("in the end all is answered:" + left).c_str());
    require(out_.empty(), "in the end every batch is back");
}

}  // namespace infersched::simulation
