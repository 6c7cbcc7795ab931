// How requests come and go: admission, the end of a request, deadlines, the step.
#include <algorithm>
#include <cstring>

#include "engine/core.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {
namespace {

constexpr Nanos kRetryAfterUnavailableNs = kSecond;
// A step that is due is not later than this, unless the clock jumped or the process stood still.
constexpr Nanos kStillMaxNs = 10 * kSecond;
// A request that is said to have come longer ago than this came this long ago.
constexpr Nanos kArrivalAgeMaxNs = 24 * 3600 * kSecond;

// When a client may try again that is refused for what cannot be foreseen.
Nanos retry_after(Reason reason) {
    switch (reason) {
        case Reason::kDraining:
        case Reason::kNoBackend:
        case Reason::kDeviceMemory:
            return kRetryAfterUnavailableNs;
        default:
            return 0;
    }
}

// Whether it is what is queued that leaves no room.
bool queue_refuses(Reason reason) {
    return reason == Reason::kQueueFull || reason == Reason::kQueueAge ||
           reason == Reason::kTenantQuota;
}

// The arrival as it is counted from now on, whatever was said: not in the future, and not so old
// that differences to it would overflow.
Nanos sane_arrival(Nanos arrival, Nanos now) {
    const Nanos oldest = now < kArrivalAgeMaxNs ? std::min<Nanos>(now, 0) : now - kArrivalAgeMaxNs;
    return std::clamp(arrival, oldest, now);
}

}  // namespace

PlacementState* ModelState::placement(std::uint32_t backend) {
    for (PlacementState& candidate : placements) {
        if (candidate.backend == backend) return &candidate;
    }
    return nullptr;
}

float ModelState::row_size_of(std::uint64_t bytes) {
    if (row_bytes == 0) row_bytes = bytes;
    if (bytes == row_bytes) return 1;
    return static_cast<float>(static_cast<double>(bytes) / static_cast<double>(row_bytes));
}

Pool& ModelState::pool(std::uint32_t pin) {
    return pin == kNoBackend ? shared : placement(pin)->pinned;
}

// Megabytes of zeros are not written again: that would make the whole page resident.
Core::Core(CountersPage* page) : CoreState(page) {
    if (page_->magic != 0) std::memset(static_cast<void*>(page_), 0, sizeof(CountersPage));
    page_->magic = kCountersMagic;
    page_->version = kCountersVersion;
    page_->page_bytes = sizeof(CountersPage);
}

void Core::mark_dirty(std::uint32_t model) {
    if (models_[model].dirty) return;
    models_[model].dirty = true;
    dirty_.push_back(model);
}

Reason Core::refusal(const ModelState& model, const Request& request, const Arrival& arrival,
                     Nanos now) {
    const ModelPolicy& policy = model.policy;
    if (draining) return Reason::kDraining;
    if (!policy.admitting) return Reason::kUnloading;
    if (arrival.deadline <= now) return Reason::kDeadlineInfeasible;
    const Pool* pool = &model.shared;
    const bool known = request.sequence != 0 && known_sequence(model, request);
    if (request.pinned_backend != kNoBackend && !known) {
        const PlacementState* placement =
            const_cast<ModelState&>(model).placement(request.pinned_backend);
        if (placement == nullptr || !placement->configured) return Reason::kNoBackend;
        pool = &placement->pinned;
    }
    if (pool->unserved_since != kNever && !known &&
        now >= add_saturating(pool->unserved_since, kUnservedAdmitNs)) {
        return Reason::kNoBackend;
    }
    // What is of lower levels takes no room from those above it.
    if (model.waiting.reach(policy.queue_requests_max, arrival.queue_level)) {
        return Reason::kQueueFull;
    }
    if (!model.waiting.has_room(request.bytes, policy.queue_bytes_max, arrival.queue_level)) {
        return Reason::kQueueFull;
    }
    if (policy.queue_age_max_ns > 0 &&
        model.ages.older(requests_, arrival.queue_level, policy.queue_age_max_ns, now)) {
        return Reason::kQueueAge;
    }
    const bool full = policy.triton != nullptr && triton_full(model, request);
    return full ? Reason::kQueueFull : Reason::kNone;
}

Admission Core::refuse(ModelState& model, const Arrival& asked, std::uint32_t index,
                       Reason reason) {
    ModelCounters& page = counters(index);
    if (asked.deadline != kNever) count_slo(page, asked.queue_level);
    ++page.refused;
    ++page.outcomes[static_cast<std::size_t>(Outcome::kRefused)][static_cast<std::size_t>(reason)];
    const bool tritons = model.policy.triton != nullptr && reason == Reason::kQueueFull;
    // Triton counts no failure of what it did not let into its queue.
    if (!tritons) ++model.stats.rejected;
    return {0, reason, retry_after(reason), tritons ? StatusCode::kUnavailable : StatusCode::kOk};
}

Arrival Core::arrival_of(const ModelState& model, const Request& request, Nanos now) const {
    Arrival arrival;
    arrival.at = sane_arrival(request.arrival, now);
    arrival.level = arrival.asked_level = queue_level(model.policy, request.priority);
    arrival.queue_level =
        triton_takes(model, request) ? triton_level(model, request.priority) : arrival.asked_level;
    arrival.deadline = request.deadline;
    const Nanos slo_ns = level_slo_ns(model.policy, arrival.level);
    if (slo_ns > 0) {
        const Nanos from = std::max(arrival.at, std::min(request.admissible_at, now));
        arrival.deadline = std::min(arrival.deadline, add_saturating(from, slo_ns));
    }
    arrival.tenant = request.tenant < tenant_weights_.size() ? request.tenant : 0;
    // A request without rows shares its batch with nobody.
    arrival.key = {request.signature, request.pinned_backend,
                   request.mergeable && request.rows > 0};
    return arrival;
}

Admission Core::submit(const Request& request, Nanos now) {
    if (request.model >= models_.size() || !models_[request.model].policy.in_use) {
        return {0, Reason::kUnknownModel, 0};
    }
    ModelState& model = models_[request.model];
    const ModelPolicy& policy = model.policy;
    Arrival arrival = arrival_of(model, request, now);
    Reason reason = refusal(model, request, arrival, now);
    if (reason == Reason::kQueueFull && policy.triton == nullptr) {
        weigh(model, request, arrival, now);
        if (over_share_of_queue(model, arrival, now)) reason = Reason::kTenantQuota;
    }
    if (reason != Reason::kNone) {
        Admission refused = refuse(model, arrival, request.model, reason);
        refused.deadline = arrival.deadline;
        if (queue_refuses(reason)) {
            refused.retry_after_ns = retry_full(model, request, arrival, now);
        }
        return refused;
    }
    arrival.level = served_level(model, arrival);
    weigh(model, request, arrival, now);
    const Forecast forecast = foresee(model, request, arrival, now);
    if (forecast.reason != Reason::kNone) {
        return refuse_foreseen(model, request, arrival, forecast, now);
    }
    Admission refused;
    const float row_size = request.row_bytes == 0 ? 1 : model.row_size_of(request.row_bytes);
    if (memory_.active() && !model.splits(request.mergeable) &&
        short_of_memory(model, request, arrival, row_size, refused, now)) {
        return refused;
    }

    const std::uint32_t slot = requests_.add();
    RequestRecord& record = requests_[slot];
    record.user = request.user;
    record.sequence = ++sequence_;
    record.bytes = request.bytes;
    record.arrival = arrival.at;
    record.deadline = arrival.deadline;
    record.model = request.model;
    record.rows = request.rows;
    record.row_size = row_size;
    record.level = arrival.level;
    record.asked_level = arrival.asked_level;
    record.tenant = arrival.tenant;
    record.over_share = arrival.over_share;
    record.kept = request.kept || forecast.kept;
    record.admitted_late = request.admissible_at > arrival.at;
    record.share_ns = arrival.share_ns;
    ModelCounters& page = counters(request.model);
    ++page.admitted;
    ++page.in_flight;
    if (request.sequence != 0 && policy.sequence_idle_ns > 0) {
        join_sequence(slot, request, now);
    } else if (policy.triton != nullptr && triton_takes(model, request)) {
        join_levels(slot, request, now);
    } else {
        record.group = arrival.group = model.groups.get(arrival.key);
        enqueue(model, slot, now);
        meter(model, request, arrival, now);
    }
    if (!record.grouped()) time_alone(slot);
    Admission admitted;
    admitted.handle = requests_.handle(slot);
    admitted.deadline = arrival.deadline;
    return admitted;
}

// Takes a request out of its batches; those that nobody waits for any more end here.
inline void Core::leave_batches(std::uint32_t slot, Nanos now) {
    Carriers& carriers = requests_[slot].batches;
    while (!carriers.empty()) {
        const std::uint32_t batch_slot = carriers.back();
        carriers.remove(batch_slot);
        BatchRecord& batch = batches_[batch_slot];
        if (batch.formed) batch.rows -= requests_[slot].rows;
        if (--batch.live > 0) continue;
        if (batch.formed) {
            drop_formed(batch_slot);
        } else if (batch.retry_sequence != 0) {
            drop_retry(batch_slot, now);
        } else if (models_[batch.model].policy.cancellable) {
            Action action{};
            action.kind = ActionKind::kAbandon;
            action.model = batch.model;
            action.backend = batch.backend;
            action.batch = batches_.handle(batch_slot);
            action.rows = batch.rows;
            actions.push_back(action);
            mark_dirty(batch.model);
            leave_placement(batch_slot, now);
            batches_.remove(batch_slot);
        }
    }
}

void Core::finish(std::uint32_t slot, const Ending& ending, Nanos now) {
    if (requests_[slot].queued) unqueue(slot, now);
    if (requests_[slot].deadline != kNever) deadlines_.erase(slot);
    leave_batches(slot, now);
    const RequestRecord& request = requests_[slot];
    const bool sequential = request.sequential;
    const bool dispatched = request.dispatched;
    count_answer(request, ending, now);
    Action& action = actions.emplace_back();
    action.kind = ActionKind::kAnswer;
    action.outcome = ending.outcome;
    action.reason = ending.reason;
    action.code = ending.code;
    action.model = request.model;
    action.backend = ending.backend;
    action.request = requests_.handle(slot);
    action.user = request.user;
    action.batch = ending.batch;
    action.rows = request.rows;
    action.at = request.deadline;
    action.queued_ns = std::max<Nanos>(now - request.arrival, 0);
    if (ending.reason == Reason::kExpiredInQueue) {
        action.retry_after_ns = retry_given_up(request, now);
    }
    action.predicted_bytes = ending.predicted_bytes;
    action.free_bytes = ending.free_bytes;
    requests_.remove(slot);
    if (sequential) {
        sequence_answered(slot, dispatched, ending.outcome == Outcome::kCompleted, now);
    }
}

void Core::cancel(RequestHandle handle, Nanos now) {
    const std::uint32_t slot = requests_.find(handle);
    if (slot == kNoSlot) return;
    finish(slot, {Outcome::kCancelled, Reason::kClientCancelled, StatusCode::kCancelled}, now);
}

// In the order of admission.
void Core::fail_all(Reason reason, Nanos now) {
    std::vector<std::uint32_t> left;
    for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
        if (requests_.live(slot)) left.push_back(slot);
    }
    std::sort(left.begin(), left.end(), [&](std::uint32_t a, std::uint32_t b) {
        return requests_[a].sequence < requests_[b].sequence;
    });
    for (const std::uint32_t slot : left) {
        finish(slot, {Outcome::kFailed, reason, StatusCode::kUnavailable}, now);
    }
}

void Core::expire(Nanos now) {
    while (!deadlines_.empty() && deadlines_.top().at <= now) {
        const std::uint32_t slot = deadlines_.top().slot;
        const Reason reason =
            requests_[slot].dispatched ? Reason::kExpiredInFlight : Reason::kExpiredInQueue;
        finish(slot, {Outcome::kExpired, reason, StatusCode::kDeadlineExceeded}, now);
    }
}

// What is timed across a jump is wrong, and more is not: it is counted. One ahead shows only where
// something was due: without work there is no next step.
void Core::watch_clock(Nanos now) {
    if (now < stepped_at_) ++page_->clock_back_total;
    if (now > add_saturating(wake_, kStillMaxNs)) ++page_->clock_ahead_total;
    stepped_at_ = now;
}

void Core::step(Nanos now) {
    watch_clock(now);
    arrange(now);
    run_ticks(now);
    expire(now);
    expire_sequences(now);
    release_given_up(now);
    release_ended_holds(now);
    while (!moments_.empty() && moments_.top().at <= now) {
        mark_dirty(moments_.top().slot);
        moments_.erase(moments_.top().slot);
    }
    std::sort(dirty_.begin(), dirty_.end());
    for (const std::uint32_t index : dirty_) list_aged(models_[index], index, now);
    // By index: a model that fails its queue marks itself dirty again, but is done here.
    for (std::size_t i = 0; i < dirty_.size(); ++i) {
        const std::uint32_t index = dirty_[i];
        run_model(index, now);
    }
    for (std::size_t i = 0; i < dirty_components_.size(); ++i) serve(dirty_components_[i], now);
    dirty_components_.clear();
    for (const std::uint32_t index : dirty_) {
        moments_.set({next_moment(models_[index], now), index, index});
        publish_queue(index);
        models_[index].dirty = false;
    }
    dirty_.clear();
    emit_wake(now);
}

// A wake that comes too early costs a step, re-arming a timer costs a system call: a later moment
// is told only when the earlier one has passed.
void Core::emit_wake(Nanos now) {
    Nanos next = kNever;
    for (const TimerHeap* timers : {&deadlines_, &moments_, &idle_, &given_up_, &holds_, &ticks_}) {
        if (!timers->empty()) next = std::min(next, timers->top().at);
    }
    const bool passed = wake_ <= now;
    if (next == wake_ || (next > wake_ && !passed)) return;
    wake_ = next;
    Action action{};
    action.kind = ActionKind::kWake;
    action.backend = kNoBackend;
    action.at = next;
    actions.push_back(action);
}

}  // namespace infersched::engine
