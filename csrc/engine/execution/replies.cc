// What a reply or a failure of a batch means for its members.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Its reason may be the backend, or a member of the batch.
bool in_doubt(FailureKind kind) {
    return kind == FailureKind::kUnavailable || kind == FailureKind::kReset;
}

// Whether what a backend answered as unavailable is asked of another one, and whether what it reset
// is sent again, there if there is no other: not twice.
bool may_go_again(const ModelState& model, const BatchRecord& failed, FailureKind kind,
                  bool others) {
    const bool there = kind == FailureKind::kReset || (others && failed.pin == kNoBackend);
    return model.policy.idempotent && failed.tries < kTriesOfDoubt && there;
}

// Whether the time that a batch ran for can be learned from. Not that of one that was still thought
// to be staged, nor of one whose reply came in one reading with that of the batch before it: they
// tell nothing. What no clock that goes forward gives, and what no batch takes, is counted.
bool timed(IgnoredTimes& ignored, const BatchRecord& batch, Nanos now) {
    const bool staged = batch.started_at == kNever;
    if (now < batch.dispatched_at || (!staged && now < batch.started_at)) {
        ++ignored.backward;
    } else if (now == batch.dispatched_at) {
        ++ignored.zero;
    } else if (!staged && now - batch.started_at > kLatencyRanMax) {
        ++ignored.too_long;
    } else {
        return !staged && now > (batch.early() ? batch.freed_at : batch.started_at);
    }
    return false;
}

}  // namespace

// The first `slots` batches out there run; the others are staged.
void Core::promote(PlacementState& placement, Nanos now) {
    std::size_t i = std::min<std::size_t>(placement.slots, placement.out.size());
    while (i > 0 && batches_[placement.out[i - 1]].started_at == kNever) {
        note_started(batches_[placement.out[--i]], now);
    }
}

void Core::start_first(const Executor& executor, Nanos now) {
    if (executor.out.empty()) return;
    BatchRecord& first = batches_[executor.out.front()];
    if (first.started_at == kNever) note_started(first, now);
}

void Core::leave_placement(std::uint32_t batch_slot, Nanos now) {
    BatchRecord& batch = batches_[batch_slot];
    ModelState& model = models_[batch.model];
    PlacementState& placement = *model.placement(batch.backend);
    if (batch.grows) {
        memory_.settle(batch, placement, now);
        for (const std::uint32_t device : placement.devices) publish_device(device);
    }
    const auto place = std::find(placement.out.begin(), placement.out.end(), batch_slot);
    placement.out.erase(place);
    placement.rows_out -= batch.rows;
    const bool followed = batch.followed;
    note_left(batch);
    if (batch.started_at != kNever) places_.end(batch.place, now);
    if (batch.held_since != kNever) {
        release_hold(batch_slot, now);
    } else if (placement.held_for != 0) {
        note_left_beside(placement);
    }
    if (batch.executor == kNoExecutor) {
        promote(placement, now);
    } else {
        Executor& executor = executors_[batch.executor];
        executor.out.erase(std::find(executor.out.begin(), executor.out.end(), batch_slot));
        start_first(executor, now);
        touch_component(executor.component);
    }
    if (followed) follow_another(placement, batches_.handle(batch_slot), now);
    if (placement.resting(now)) recount_pauses(model);
    --model.inflight_batches;
    count_departure(batch);
    mark_dirty(batch.model);
}

void Core::observe(ModelState& model, const BatchRecord& batch, Nanos now) {
    PlacementState& placement = *model.placement(batch.backend);
    if (placement.resting(now)) recount_pauses(model);
    placement.recover();
    if (!timed(placement.ignored_times, batch, now)) return;
    const Nanos ran = now - batch.started_at;
    placement.observe(ran, batch.rows);
    placement.cut = false;
    model.batch_ns = averaged(model.batch_ns, ran);
    model.device_ns += static_cast<double>(ran);
    model.doubted = ran < (batch.ends_at - batch.started_at) / 2;
    if (model.doubted) model.size_probes.refuted(batch.rows);
    if (!model.learns) return;
    if (latency_of(model, placement).known()) learn_head_start(placement, batch, now);
    learn_latency(model, batch, rows_sent(model, batch), now);
}

// Ends a batch. The members that still wait for an answer, no longer linked to it.
std::vector<BatchMember> Core::detach(std::uint32_t batch_slot) {
    std::vector<BatchMember> live;
    live.swap(batches_[batch_slot].members);
    const auto stale = [&](const BatchMember& m) { return requests_.find(m.request) == kNoSlot; };
    live.erase(std::remove_if(live.begin(), live.end(), stale), live.end());
    for (const BatchMember& member : live) {
        requests_[static_cast<std::uint32_t>(member.request)].batches.remove(batch_slot);
    }
    return live;
}

// The batch at a backend that `handle` names, or kNoSlot.
std::uint32_t Core::sent_batch(BatchHandle handle) const {
    const std::uint32_t slot = batches_.find(handle);
    if (slot == kNoSlot) return kNoSlot;
    const BatchRecord& batch = batches_[slot];
    return batch.retry_sequence != 0 || batch.release_at != kNever ? kNoSlot : slot;
}

void Core::complete(BatchHandle handle, Nanos now) {
    const std::uint32_t batch_slot = sent_batch(handle);
    if (batch_slot == kNoSlot) return;
    BatchRecord& batch = batches_[batch_slot];
    ModelState& model = models_[batch.model];
    // As the observed times: from when an instance was free for it.
    const Nanos started = batch.started_at == kNever ? batch.dispatched_at : batch.started_at;
    observe(model, batch, now);
    prove_memory(model, batch, now);
    count_reply(batch, now);
    count_execution(model, batch.rows, now - started);
    leave_placement(batch_slot, now);
    if (batch.members.size() > 1) suspect_good(model, batch.signature);

    Nanos answered = 0;
    Completions completions;
    const Ending ending{Outcome::kCompleted, Reason::kNone, StatusCode::kOk, handle, batch.backend};
    for (const BatchMember& member : batch.members) {
        const std::uint32_t slot = requests_.find(member.request);
        if (slot == kNoSlot) continue;
        RequestRecord& request = requests_[slot];
        request.batches.remove(batch_slot);
        if (request.queued || !request.batches.empty()) continue;  // other parts are still out
        completions.rows += request.rows;
        completions.waited_ns += now - request.arrival;
        finish(slot, ending, now);
        ++answered;
    }
    batches_.remove(batch_slot);

    if (answered == 0) return;
    completions.requests = answered;
    count_completions(model, completions, started, now);
    if (model.waiting.total() > 0 && model.last_complete > 0) {
        const Nanos apart = std::max<Nanos>((now - model.last_complete) / answered, 1);
        model.drain_ns = averaged(model.drain_ns, apart);
    }
    model.last_complete = now;
}

void Core::fail_members(const std::vector<BatchMember>& failed, const Ending& ending, Nanos now) {
    for (const BatchMember& member : failed) {
        const std::uint32_t slot = requests_.find(member.request);
        if (slot != kNoSlot) finish(slot, ending, now);
    }
}

// The backend of a failed batch rests where that is due. Whether another one could be asked now:
// where there is none, a rest would only delay answers of the backend itself.
bool Core::rest_failed(ModelState& model, const BatchRecord& failed, FailureKind kind, Nanos now) {
    const bool others =
        std::any_of(model.placements.begin(), model.placements.end(), [&](const PlacementState& p) {
            return p.backend != failed.backend && usable(p) && !p.resting(now);
        });
    PlacementState& placement = *model.placement(failed.backend);
    if (kind == FailureKind::kNothingRan || kind == FailureKind::kConnection) {
        placement.rest(now);
    } else if (in_doubt(kind) && others && !failed.retried) {
        placement.note_doubt(now);
    } else {
        return others;
    }
    rests_until_ = std::max(rests_until_, placement.rest_until);
    recount_pauses(model);
    return others;
}

void Core::dispatch_failed(BatchHandle handle, FailureKind kind, StatusCode code, Nanos now) {
    const std::uint32_t batch_slot = sent_batch(handle);
    if (batch_slot == kNoSlot) return;
    ModelState& model = models_[batches_[batch_slot].model];
    count_failure(batches_[batch_slot]);
    if (code == StatusCode::kOk) code = StatusCode::kInternal;
    if (kind == FailureKind::kGivenUp && !model.policy.cancellable) {
        return give_up(batch_slot, code, now);
    }
    if (kind == FailureKind::kOutOfMemory) cut_sizes(model, batches_[batch_slot]);
    leave_placement(batch_slot, now);
    const bool others = rest_failed(model, batches_[batch_slot], kind, now);
    const bool merged = batches_[batch_slot].members.size() > 1;
    BatchRecord failed = batches_[batch_slot];
    failed.members = detach(batch_slot);
    batches_.remove(batch_slot);
    // Halves have no backend to avoid: they are no news of their signature.
    bool first = !failed.retried;
    const bool doubtful = in_doubt(kind);
    const bool reset = kind == FailureKind::kReset;
    if (doubtful && !may_go_again(model, failed, kind, others)) {
        first |= failed.avoid != kNoBackend;
        kind = FailureKind::kRejected;
    }
    if (kind == FailureKind::kRejected && merged && first) {
        suspect_failed(model, failed.signature, now);
    }
    if (failed.members.empty()) return;
    const auto lead = static_cast<std::uint32_t>(failed.members.front().request);
    // The state of a sequence is where it is; after a reset nobody knows it.
    if (doubtful && requests_[lead].sequential) {
        kind = reset ? FailureKind::kConnection : FailureKind::kRejected;
    }
    // What was merged may be sent again in smaller groups, what ran alone has its answer.
    if (!merged && (kind == FailureKind::kRejected || kind == FailureKind::kUnsplittable)) {
        kind = FailureKind::kFinal;
    }
    const Ending ending{Outcome::kFailed, Reason::kBackendError, code, handle, failed.backend};
    resolve_failure(model, failed, kind, ending, now);
}

// A batch that was given up has run for so long at least. Of a model that is known, only one that
// ran on tells: what others were given the next one shows (PlacementState::cut).
void Core::observe_unfinished(ModelState& model, const BatchRecord& batch, Nanos now) {
    PlacementState& placement = *model.placement(batch.backend);
    if (!timed(placement.ignored_times, batch, now) || !model.learns) return;
    const LatencyModel& latency = latency_of(model, placement);
    const Nanos ran_ns = now - batch.started_at;
    const std::uint32_t rows = rows_sent(model, batch);
    placement.cut = !batch.runs_on;
    if (latency.known() && (!batch.runs_on || ran_ns <= latency.expected(rows))) return;
    learn_latency(model, batch, rows, now);
}

// The members have their answer; the slot is taken until the execution should be over.
void Core::give_up(std::uint32_t batch_slot, StatusCode code, Nanos now) {
    const BatchRecord& batch = batches_[batch_slot];
    const Nanos started = batch.started_at == kNever ? now : batch.started_at;
    const Nanos batch_ns = models_[batch.model].placement(batch.backend)->batch_ns;
    const Nanos end = std::max(add_saturating(started, batch_ns), now + kGivenUpMinNs);
    observe_unfinished(models_[batch.model], batch, now);
    const BatchHandle handle = batches_.handle(batch_slot);
    const Ending ending{Outcome::kFailed, Reason::kBackendError, code, handle, batch.backend};
    batches_[batch_slot].release_at = end;
    given_up_.push({end, handle, batch_slot});
    const std::vector<BatchMember> live = detach(batch_slot);
    batches_[batch_slot].live = 0;
    fail_members(live, ending, now);
}

void Core::release_given_up(Nanos now) {
    while (!given_up_.empty() && given_up_.top().at <= now) {
        const std::uint32_t batch_slot = given_up_.top().slot;
        given_up_.erase(batch_slot);
        leave_placement(batch_slot, now);
        batches_.remove(batch_slot);
    }
}

void Core::resolve_failure(ModelState& model, const BatchRecord& failed, FailureKind kind,
                           const Ending& ending, Nanos now) {
    Ending unavailable = ending;
    unavailable.code = StatusCode::kUnavailable;
    if (!model.policy.in_use && kind != FailureKind::kFinal) {
        unavailable.reason = Reason::kNoBackend;
        return fail_members(failed.members, unavailable, now);
    }
    const bool unanswered = kind == FailureKind::kNothingRan || kind == FailureKind::kConnection;
    const auto first = static_cast<std::uint32_t>(failed.members.front().request);
    if (unanswered && requests_[first].sequential) {
        return sequence_failed(model, failed, kind, ending, now);
    }
    const bool again = model.policy.idempotent || kind == FailureKind::kNothingRan;
    switch (kind) {
        case FailureKind::kNothingRan:
        case FailureKind::kConnection:
            if (!again || failed.tries + 1 >= kTriesMax) {
                return fail_members(failed.members, unavailable, now);
            }
            return retry(model, failed, 0, failed.members.size(), failed.tries + 1);
        case FailureKind::kUnavailable:
        case FailureKind::kReset:
            return retry(model, failed, 0, failed.members.size(), failed.tries + kTriesOfDoubt);
        case FailureKind::kUnsplittable:
            if (!model.merging_off) {
                model.merging_off = true;
                refresh_all(model, now);
            }
            if (!again) return fail_members(failed.members, ending, now);
            return retry(model, failed, 0, failed.members.size(), failed.tries);
        case FailureKind::kRejected:
            if (!again || !bisect(model, failed)) fail_members(failed.members, ending, now);
            return;
        case FailureKind::kOutOfMemory:
            return retry_smaller(model, failed, ending, now);
        case FailureKind::kFinal:
        case FailureKind::kGivenUp:
            return fail_members(failed.members, ending, now);
    }
}

}  // namespace infersched::engine
