// Requests of a sequence: sent in the order of their admission to the one backend that keeps the
// state.
//
// The pin comes with the first request that is sent and goes with the answer to the end, or after
// sequence_idle_ns without a request. The state counts as lost when a request may or may not have
// run, when the placement is removed, and when the backend was unusable for kUnservedAdmitNs: a
// connection that comes back earlier costs nothing. What is queued then is failed, and what comes
// later, until a start.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

Nanos idle_ns(const ModelState& model) { return model.policy.sequence_idle_ns; }

}  // namespace

// Whether the request continues a sequence that has a backend, or had one.
bool Core::known_sequence(const ModelState& model, const Request& request) const {
    if (request.sequence_start || idle_ns(model) == 0) return false;
    const auto found = model.sequences.find(request.sequence);
    if (found == model.sequences.end()) return false;
    const SequenceRecord& sequence = sequences_[found->second];
    return sequence.backend != kNoBackend || sequence.lost;
}

void Core::join_sequence(std::uint32_t slot, const Request& request, Nanos now) {
    RequestRecord& record = requests_[slot];
    ModelState& model = models_[record.model];
    list_queued(model, slot);
    const auto [place, made] = model.sequences.try_emplace(request.sequence, 0);
    if (made) {
        place->second = sequences_.add();
        SequenceRecord& sequence = sequences_[place->second];
        sequence.key = request.sequence;
        sequence.number = record.sequence;
        sequence.model = record.model;
    }
    if (slot >= sequential_.size()) sequential_.resize(slot + 1);
    sequential_[slot] = {request.path, place->second, request.pinned_backend,
                         request.sequence_start, request.sequence_end};
    record.sequential = record.held = true;
    sequences_[place->second].held.append<&RequestRecord::in_group>(requests_, slot);
    idle_.erase(place->second);
    advance(place->second, now);
}

// Lets the next request wait for a slot when it may be sent now; forgets a sequence at its end.
void Core::advance(std::uint32_t index, Nanos now) {
    SequenceRecord& sequence = sequences_[index];
    ModelState& model = models_[sequence.model];
    if (sequence.idle()) {
        const bool kept = model.policy.in_use && (sequence.started || sequence.lost);
        if (!kept) return forget(index);
        return idle_.set({add_saturating(now, idle_ns(model)), sequence.number, index});
    }
    if (sequence.lead != kNoSlot || sequence.held.empty()) return;
    const std::uint32_t slot = sequence.held.first;
    RequestRecord& request = requests_[slot];
    const SequenceMember& member = sequential_[slot];
    if (sequence.lost && !member.start) return doom(index);
    const bool follows = sequence.path != 0 && sequence.path == member.path;
    if (sequence.inflight > 0 && !follows) return;
    sequence.held.unlink<&RequestRecord::in_group>(requests_, slot);
    request.held = false;
    sequence.lead = slot;
    std::uint32_t pin = sequence.backend;
    if (pin == kNoBackend && member.pin != kNoBackend) {
        const PlacementState* wanted = model.placement(member.pin);
        if (wanted != nullptr && wanted->configured) pin = member.pin;
    }
    request.group = model.groups.get({0, pin, false});
    join_group(model, slot, now);
    mark_dirty(sequence.model);
}

// The lead becomes the first of those held again.
void Core::step_back(std::uint32_t index, Nanos now) {
    SequenceRecord& sequence = sequences_[index];
    if (sequence.lead == kNoSlot) return;
    leave_group(sequence.lead, now);
    requests_[sequence.lead].held = true;
    sequence.held.prepend<&RequestRecord::in_group>(requests_, sequence.lead);
    sequence.lead = kNoSlot;
}

void Core::sequence_sent(std::uint32_t batch_slot, PlacementState& placement, Nanos now) {
    const BatchRecord& batch = batches_[batch_slot];
    const auto slot = static_cast<std::uint32_t>(batch.members.front().request);
    if (!requests_[slot].sequential) return;
    const SequenceMember member = sequential_[slot];
    SequenceRecord& sequence = sequences_[member.sequence];
    if (sequence.again == slot) {
        sequence.again = kNoSlot;
    } else {
        sequence.lead = kNoSlot;
        ++sequence.inflight;
    }
    sequence.path = member.path;
    pin(member.sequence, placement);
    if (member.start) {
        sequence.started = true;
        sequence.ended = sequence.lost = false;
    }
    if (member.end) sequence.ended = true;
    advance(member.sequence, now);
}

// What was let go to follow at once is held again.
void Core::end_path(BatchHandle handle, Nanos now) {
    const std::uint32_t batch_slot = sent_batch(handle);
    if (batch_slot == kNoSlot || batches_[batch_slot].live == 0) return;
    const auto slot = static_cast<std::uint32_t>(batches_[batch_slot].members.front().request);
    if (!requests_[slot].sequential) return;
    const std::uint32_t index = sequential_[slot].sequence;
    sequences_[index].path = 0;
    step_back(index, now);
}

// A sequence without a start is known to its backend once a request of it was served.
void Core::sequence_answered(std::uint32_t slot, bool dispatched, bool completed, Nanos now) {
    const std::uint32_t index = sequential_[slot].sequence;
    SequenceRecord& sequence = sequences_[index];
    if (sequence.lead == slot) sequence.lead = kNoSlot;
    if (sequence.again == slot) sequence.again = kNoSlot;
    if (dispatched) --sequence.inflight;
    if (completed && !sequence.lost) sequence.started = true;
    if (sequence.inflight == 0 && sequence.ended) {
        unpin(index);
        step_back(index, now);
        sequence.started = sequence.ended = false;
    }
    advance(index, now);
}

// Nothing of a sequence runs twice. What did not run at all is sent again where the state is, or
// anywhere when there is none yet, unless a later request may have overtaken it.
void Core::sequence_failed(ModelState& model, const BatchRecord& failed, FailureKind kind,
                           const Ending& ending, Nanos now) {
    const auto slot = static_cast<std::uint32_t>(failed.members.front().request);
    const std::uint32_t index = sequential_[slot].sequence;
    SequenceRecord& sequence = sequences_[index];
    const bool alone = sequence.inflight == 1 && !sequence.lost;
    const bool reachable = failed.pin == kNoBackend || usable(*model.placement(failed.pin));
    if (kind == FailureKind::kNothingRan && alone && reachable && failed.tries + 1 < kTriesMax) {
        sequence.again = slot;
        sequence.path = 0;
        step_back(index, now);
        if (failed.pin == kNoBackend) {
            unpin(index);
            sequence.started = false;
        }
        return retry(model, failed, 0, failed.members.size(), failed.tries + 1);
    }
    if (!sequence.lost) lose(index, now);
    Ending lost = ending;
    lost.reason = Reason::kSequenceLost;
    lost.code = StatusCode::kUnavailable;
    fail_members(failed.members, lost, now);
}

void Core::pin(std::uint32_t index, PlacementState& placement) {
    SequenceRecord& sequence = sequences_[index];
    if (sequence.backend == placement.backend) return;
    unpin(index);
    sequence.backend = placement.backend;
    placement.sequences.append<&SequenceRecord::in_placement>(sequences_, index);
    ++placement.sequence_count;
}

void Core::unpin(std::uint32_t index) {
    SequenceRecord& sequence = sequences_[index];
    if (sequence.backend == kNoBackend) return;
    PlacementState& placement = *models_[sequence.model].placement(sequence.backend);
    placement.sequences.unlink<&SequenceRecord::in_placement>(sequences_, index);
    --placement.sequence_count;
    sequence.backend = kNoBackend;
}

// The state is gone. What is queued is failed by the next step, up to a start.
void Core::lose(std::uint32_t index, Nanos now) {
    SequenceRecord& sequence = sequences_[index];
    sequence.lost = true;
    sequence.started = sequence.ended = false;
    sequence.path = 0;
    unpin(index);
    step_back(index, now);
    if (!sequence.held.empty() || sequence.again != kNoSlot) doom(index);
    if (sequence.idle()) advance(index, now);
}

void Core::doom(std::uint32_t index) {
    SequenceRecord& sequence = sequences_[index];
    mark_dirty(sequence.model);
    if (sequence.doomed) return;
    sequence.doomed = true;
    models_[sequence.model].doomed.push_back(index);
}

// A start that became the lead ends the losses: the rest belongs to the new sequence.
bool Core::first_is_lost(const SequenceRecord& sequence) const {
    return sequence.lost && sequence.lead == kNoSlot && !sequence.held.empty() &&
           !sequential_[sequence.held.first].start;
}

void Core::fail_doomed(ModelState& model, Nanos now) {
    const Ending ending{Outcome::kFailed, Reason::kSequenceLost, StatusCode::kUnavailable};
    for (std::size_t i = 0; i < model.doomed.size(); ++i) {
        const std::uint32_t index = model.doomed[i];
        if (!sequences_.live(index) || !sequences_[index].doomed ||
            &models_[sequences_[index].model] != &model)
            continue;
        if (sequences_[index].again != kNoSlot) finish(sequences_[index].again, ending, now);
        // Any answer may be the last of the sequence, which is forgotten then.
        while (sequences_.live(index) && first_is_lost(sequences_[index])) {
            finish(sequences_[index].held.first, ending, now);
        }
        if (!sequences_.live(index)) continue;
        sequences_[index].doomed = false;
        advance(index, now);
    }
    model.doomed.clear();
}

// Sequences whose backend did not come back in time.
void Core::lose_unserved(ModelState& model, Nanos now) {
    for (PlacementState& p : model.placements) {
        if (p.sequence_count == 0) continue;
        if (now >= add_saturating(p.pinned.unserved_since, kUnservedAdmitNs)) lose_all(p, now);
    }
}

void Core::lose_all(PlacementState& placement, Nanos now) {
    while (!placement.sequences.empty()) lose(placement.sequences.first, now);
}

// The model is removed: what is held is failed here, what waits in a pool with that pool.
void Core::forget_all(ModelState& model, Nanos now) {
    const Ending ending{Outcome::kFailed, Reason::kNoBackend, StatusCode::kUnavailable};
    for (std::uint32_t slot = model.by_age.first; slot != kNoSlot;) {
        const std::uint32_t next = requests_[slot].in_model.next;
        if (requests_[slot].held) finish(slot, ending, now);
        slot = next;
    }
    for (PlacementState& p : model.placements) {
        while (!p.sequences.empty()) {
            const std::uint32_t index = p.sequences.first;
            unpin(index);
            if (sequences_[index].idle()) forget(index);
        }
    }
}

void Core::forget(std::uint32_t index) {
    unpin(index);
    idle_.erase(index);
    models_[sequences_[index].model].sequences.erase(sequences_[index].key);
    sequences_.remove(index);
}

void Core::expire_sequences(Nanos now) {
    while (!idle_.empty() && idle_.top().at <= now) forget(idle_.top().slot);
}

}  // namespace infersched::engine
