// `batching: triton`: batches as Triton's dynamic batcher forms them.
//
// One look at the queue does what Triton's GetDynamicBatch does: it takes the front of the queue as
// far as preferred sizes, the delay, shapes and the largest batch say, or waits. Batches are formed
// while an instance is idle or, for models without queue policies, up to two an instance ahead; the
// last one formed grows until an instance takes it.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// Batches formed ahead, for each instance.
constexpr std::size_t kFormedAheadMax = 2;

std::uint32_t counted_rows(const RequestRecord& request) { return std::max(request.rows, 1u); }

// Triton fetches requests from the queue ahead of its instances when no policy can take them out.
bool forms_ahead(const TritonBatching& batching) {
    const TritonQueuePolicy& policy = batching.levels.front();
    return batching.levels.size() == 1 && policy.timeout_ns == 0 && !policy.timeout_override &&
           policy.requests_max == 0;
}

bool contains(const std::vector<std::uint32_t>& sizes, std::uint64_t size) {
    return std::binary_search(sizes.begin(), sizes.end(), size);
}

}  // namespace

// What one look at the queue found.
struct Core::TritonLook {
    std::vector<std::uint32_t> pending;  // requests for a batch, in order
    std::uint64_t rows = 0;
    std::size_t best_count = 0;  // the first of them that make a preferred size
    std::uint64_t best_rows = 0;
    Nanos oldest = kNever;
    Nanos closest_timeout = kNever;
    bool saturated = false;  // the batch does not grow after this
    bool sealed = false;     // a request follows that cannot join it
    bool send_now = false;
    bool limited = false;  // by device memory
    std::vector<std::uint32_t> expired;
};

// Requests of one signature share a batch: it is sent as one request, so more must agree than in
// Triton, where shapes do.
bool Core::triton_joins(const ModelState& model, const BatchRecord* open,
                        const std::vector<std::uint32_t>& pending,
                        const RequestRecord& request) const {
    if (!model.merging() || !model.policy.triton->dynamic || !request.mergeable) return false;
    if (open != nullptr) return open->mergeable && open->signature == request.signature;
    const RequestRecord& first = requests_[pending.front()];
    return first.mergeable && first.signature == request.signature;
}

Core::TritonLook Core::triton_gather(ModelState& model, const BatchRecord* open, Nanos now) {
    const TritonBatching& batching = *model.policy.triton;
    const auto& sizes = batching.preferred_rows;
    const std::uint64_t preferred_max = sizes.empty() ? 0 : sizes.back();
    TritonLook look;
    TritonCursor cursor(requests_, model.triton, batching, now);
    float row_size = open != nullptr ? open->row_size : 1;
    if (open == nullptr && !cursor.at_end()) row_size = requests_[cursor.slot()].row_size;
    const std::uint32_t rows_max =
        rows_limit(model.policy, memory_limit(model, row_size).rows.merged);
    while (!cursor.at_end()) {
        const RequestRecord& request = requests_[cursor.slot()];
        const std::uint64_t rows_before = look.rows + (open != nullptr ? open->rows : 0);
        const std::uint64_t rows_with = rows_before + counted_rows(request);
        if (open != nullptr || !look.pending.empty()) {
            if (rows_with > preferred_max && look.best_rows == 0) {
                look.best_rows = look.rows;
                look.best_count = look.pending.size();
                look.saturated = true;
            }
            const bool fits = rows_with <= rows_max;
            look.sealed = fits && !triton_joins(model, open, look.pending, request);
            look.send_now = !fits || look.sealed;
            look.limited = !fits && rows_with <= rows_limit(model.policy);
            if (look.send_now) break;
        }
        look.pending.push_back(cursor.slot());
        look.rows += counted_rows(request);
        look.oldest = std::min(look.oldest, request.enqueued_at);
        if (!request.delayed) {
            look.closest_timeout = std::min(look.closest_timeout, request.timeout_at);
        }
        cursor.advance();
        if (contains(sizes, rows_with)) {
            look.best_rows = look.rows;
            look.best_count = look.pending.size();
        }
    }
    look.expired = std::move(cursor.expired);
    return look;
}

// Whether something has changed, so that another look is worth it. Where it waits, `look_at` says
// until when.
bool Core::triton_look(ModelState& model, Nanos now) {
    TritonQueue& queue = model.triton;
    const TritonBatching& batching = *model.policy.triton;
    const auto& sizes = batching.preferred_rows;
    BatchRecord* open = queue.growing ? &batches_[queue.formed.back()] : nullptr;
    const std::uint64_t open_rows = open != nullptr ? open->rows : 0;
    const std::uint64_t preferred_max = sizes.empty() ? 0 : sizes.back();
    TritonLook look = triton_gather(model, open, now);
    refuse_timed_out(look.expired, now);

    const Nanos delay = batching.queue_delay_max_ns;
    const bool exceeded = delay > 0 && !look.pending.empty() && now - look.oldest >= delay;
    const bool best = look.best_rows != 0 && !exceeded;
    bool leaves =
        best || look.send_now || open_rows + look.rows >= preferred_max || exceeded || delay == 0;
    look.limited &= !best;
    if (best) {
        look.pending.resize(look.best_count);
        look.saturated |= delay == 0;
    } else if (look.pending.empty()) {
        leaves = false;
        if (open != nullptr) open->sealed |= look.sealed;
    } else if (look.send_now || open_rows + look.rows >= preferred_max) {
        look.saturated = true;
    }
    // What waits for an instance takes all it can get until it has a preferred size.
    leaves |=
        !look.pending.empty() && open != nullptr && !look.saturated && !contains(sizes, open_rows);
    if (leaves) {
        triton_append(model, look);
    } else if (!look.pending.empty()) {
        queue.look_at = add_saturating(look.oldest, delay);
        queue.look_at = std::min(queue.look_at, add_saturating(look.closest_timeout, 1));
    }
    if (look.saturated) queue.growing = false;
    return leaves || look.saturated;
}

// Moves the requests found to the batch that grows, or to a new one.
void Core::triton_append(ModelState& model, const TritonLook& look) {
    TritonQueue& queue = model.triton;
    if (!queue.growing) {
        const std::uint32_t slot = batches_.add();
        const RequestRecord& first = requests_[look.pending.front()];
        BatchRecord& batch = batches_[slot];
        batch.model = first.model;
        batch.signature = first.signature;
        batch.mergeable = first.mergeable;
        batch.row_size = first.row_size;
        batch.formed = true;
        queue.formed.push_back(slot);
        queue.growing = true;
    }
    const std::uint32_t batch_slot = queue.formed.back();
    for (const std::uint32_t slot : look.pending) {
        join_batch(batch_slot, slot, requests_[slot].rows);
        batches_[batch_slot].rows += requests_[slot].rows;
        leave_levels(model, slot);
    }
    batches_[batch_slot].sealed |= look.sealed;
    if (!look.limited) return;
    ++counters(batches_[batch_slot].model).memory_limited_batches;
    batches_[batch_slot].memory_limited = true;
}

void Core::refuse_timed_out(const std::vector<std::uint32_t>& slots, Nanos now) {
    const Ending ending{Outcome::kExpired, Reason::kExpiredInQueue, StatusCode::kUnavailable};
    for (const std::uint32_t slot : slots) finish(slot, ending, now);
}

bool Core::triton_slot(const ModelState& model, Nanos now) const {
    std::size_t slots = 0;
    std::size_t idle = 0;
    for (const PlacementState& p : model.placements) {
        if (!usable(p) || p.resting(now)) continue;
        slots += p.slots;
        idle += p.slots - std::min<std::size_t>(p.out.size(), p.slots);
    }
    const std::size_t formed = model.triton.formed.size();
    if (forms_ahead(*model.policy.triton)) return formed < kFormedAheadMax * slots;
    return formed < idle;
}

// Members of a batch from one on, in another one.
void Core::move_members(std::uint32_t from_slot, std::size_t first, std::uint32_t to_slot) {
    BatchRecord& from = batches_[from_slot];
    BatchRecord& to = batches_[to_slot];
    for (std::size_t i = first; i < from.members.size(); ++i) {
        const BatchMember& member = from.members[i];
        RequestRecord& request = requests_[static_cast<std::uint32_t>(member.request)];
        request.batches.remove(from_slot);
        request.batches.push_back(to_slot);
        to.members.push_back(member);
        ++to.live;
        --from.live;
        to.rows += member.rows;
        from.rows -= member.rows;
    }
    from.members.resize(first);
}

// The one that an instance takes is cut where the devices there have no room for all of it; the
// rest is next. As in Triton's instance queue: with a delay, batches that have waited longer than
// it join it.
void Core::triton_fit(ModelState& model, std::uint32_t batch_slot, const PlacementState& placement,
                      Nanos now) {
    TritonQueue& queue = model.triton;
    BatchRecord& batch = batches_[batch_slot];
    const Nanos delay = model.policy.triton->queue_delay_max_ns;
    const MemoryLimit& limit = memory_.limit(model.policy, placement, batch.row_size);
    const std::uint32_t rows_max = rows_limit(model.policy, limit.rows.merged);
    drop_stale(batch);
    std::size_t fitting = 0;
    std::uint32_t rows_fitting = 0;
    while (fitting < batch.members.size() &&
           (fitting == 0 || rows_fitting + batch.members[fitting].rows <= rows_max)) {
        rows_fitting += batch.members[fitting++].rows;
    }
    if (fitting < batch.members.size()) {
        // Adding a batch may move the others.
        const std::uint32_t rest_slot = batches_.add();
        BatchRecord& front = batches_[batch_slot];
        BatchRecord& rest = batches_[rest_slot];
        rest.model = front.model;
        rest.signature = front.signature;
        rest.mergeable = front.mergeable;
        rest.row_size = front.row_size;
        rest.sealed = front.sealed;
        rest.formed = true;
        move_members(batch_slot, fitting, rest_slot);
        queue.formed.insert(queue.formed.begin(), rest_slot);
        ++counters(front.model).memory_limited_batches;
        front.memory_limited = true;
        return;
    }
    while (delay > 0 && !batch.sealed && !queue.formed.empty()) {
        const std::uint32_t next_slot = queue.formed.front();
        BatchRecord& next = batches_[next_slot];
        Nanos oldest = kNever;
        for (const BatchMember& member : next.members) {
            const std::uint32_t slot = requests_.find(member.request);
            if (slot != kNoSlot) oldest = std::min(oldest, requests_[slot].enqueued_at);
        }
        if (next.sealed || oldest == kNever || now - oldest <= delay) return;
        if (queue.formed.size() == 1) queue.growing = false;
        const bool joins = batch.mergeable && next.mergeable && batch.signature == next.signature;
        if (batch.rows + next.rows > rows_max || !joins) return;
        queue.formed.erase(queue.formed.begin());
        drop_stale(next);
        move_members(next_slot, 0, batch_slot);
        batches_.remove(next_slot);
    }
}

// Gives the batch formed first to an idle instance, if there is one.
bool Core::triton_take(ModelState& model, Nanos now) {
    TritonQueue& queue = model.triton;
    if (queue.formed.empty()) return false;
    const std::uint32_t batch_slot = queue.formed.front();
    Load load;
    load.rows = batches_[batch_slot].rows;
    const Choice choice = choose(model, model.shared, load, now);
    if (choice.placement == nullptr) return false;
    const bool grew = queue.growing && queue.formed.size() == 1;
    queue.formed.erase(queue.formed.begin());
    batches_[batch_slot].formed = false;
    triton_fit(model, batch_slot, *choice.placement, now);
    // Of the one that grew, what was put back does.
    if (queue.formed.empty() || (grew && batches_[queue.formed.back()].sealed)) {
        queue.growing = false;
    }
    const BatchRecord& batch = batches_[batch_slot];
    const bool cuts = model.splits(batch.mergeable);
    if (cuts && batch.rows > memory_limit(model, batch.row_size).rows.single) {
        // One request that fits no device goes in parts.
        BatchRecord whole = batch;
        whole.members = detach(batch_slot);
        batches_.remove(batch_slot);
        ++counters(whole.model).memory_limited_batches;
        retry(model, whole, 0, whole.members.size(), 0);
        while (dispatch_retry(model, now)) {
        }
        return true;
    }
    for (const BatchMember& member : batch.members) {
        mark_dispatched(static_cast<std::uint32_t>(member.request), now);
    }
    send(model, batch_slot, choice, now);
    return true;
}

void Core::run_triton(ModelState& model, Nanos now) {
    TritonQueue& queue = model.triton;
    if (model.policy.triton == nullptr) return;
    bool changed = true;
    while (changed) {
        changed = false;
        queue.look_at = kNever;
        if (queue.requests > 0 && triton_slot(model, now)) changed = triton_look(model, now);
        while (triton_take(model, now)) changed = true;
    }
    if (queue.timed == 0 || triton_slot(model, now)) {
        queue.sweep_at = kNever;
    } else if (queue.sweep_at <= now) {
        refuse_timed_out(timed_out(requests_, queue, *model.policy.triton, now), now);
        queue.sweep_at = queue.timed == 0 ? kNever : add_saturating(now, kTritonSweepNs);
    } else if (queue.sweep_at == kNever) {
        queue.sweep_at = add_saturating(now, kTritonSweepNs);
    }
}

Nanos Core::triton_moment(const ModelState& model, Nanos now) const {
    const TritonQueue& queue = model.triton;
    if (!queue.has_work()) return kNever;
    if (model.shared.unserved_since != kNever) {
        return add_saturating(model.shared.unserved_since, kUnservedMaxNs);
    }
    Nanos next = std::min(queue.look_at, queue.sweep_at);
    for (const PlacementState& p : model.placements) {
        if (usable(p) && p.resting(now)) next = std::min(next, p.rest_until);
    }
    return next;
}

}  // namespace infersched::engine
