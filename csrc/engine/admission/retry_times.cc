// When a refused request may come again: a time after which it would be let in if nothing else came
// until then. Unlike what admission foresees, which may hope, what is told here should hold.
#include <algorithm>

#include "engine/batching/load_rules.h"
#include "engine/core.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {
namespace {

constexpr Nanos kRetryMinNs = kMillisecond;
constexpr Nanos kRetryMaxNs = 10 * kSecond;
constexpr Nanos kBatchesTold = 1 << 20;

// Those that the largest batch of a group may have.
std::uint32_t rows_queued(const ModelState& model, std::uint32_t group) {
    const std::uint64_t rows = model.groups[group].rows;
    return static_cast<std::uint32_t>(
        std::clamp<std::uint64_t>(rows, 1, std::max(model.rows_trusted, 1u)));
}

// By when all that is queued for the executors of a component, of a backlog level and those above
// it, was started. Batches may come out smaller than they were counted: one more of them.
Nanos drained_at(const Component& component, std::size_t level, Nanos now) {
    const Backlog& backlog = component.backlog;
    const Nanos queued =
        component.levels ? backlog.queued_before(level, kNever, now) : backlog.queued();
    const Nanos batch_ns = std::max<Nanos>(component.batch_ns, 1);
    const Nanos batches = std::min<Nanos>(queued / batch_ns + (queued > 0 ? 2 : 0), kBatchesTold);
    return backlog.free_at(static_cast<std::uint32_t>(batches), batch_ns, now);
}

}  // namespace

// Of a request that finds no room in the queue: when what has to leave it is gone. Where latencies
// are not known, the queue goes on to drain as it did.
Nanos Core::retry_full(const ModelState& model, const Request& request, const Arrival& arrival,
                       Nanos now) const {
    const ModelPolicy& policy = model.policy;
    const std::uint64_t ahead = model.waiting.down_to(arrival.queue_level).requests;
    const bool too_many =
        ahead >= policy.queue_requests_max &&
        model.waiting.has_room(request.bytes, policy.queue_bytes_max, arrival.queue_level);
    // Where some requests wait below their own level, all that is queued may come before.
    const bool of_levels = !yields_beyond(policy);
    const auto leaving = static_cast<Nanos>(of_levels ? ahead : model.waiting.total());
    Nanos drain = 0;
    if (__builtin_mul_overflow(model.drain_ns, leaving, &drain)) drain = kNever;
    drain = std::clamp(std::max(drain, model.batch_ns), kRetryMinNs, kRetryMaxNs);
    const Group* group = arrival.group == kNoSlot ? nullptr : &model.groups[arrival.group];
    const bool foreseen = model.reference != kNoSlot && model.component != kNoSlot && !rearrange_ &&
                          policy.triton == nullptr && components_[model.component].slots > 0;
    if (!foreseen || group == nullptr || group->work_ns == 0) return drain;
    const Backlog& backlog = components_[model.component].backlog;
    const LatencyModel& latency = reference_latency(model);
    const std::size_t last =
        of_levels ? backlog_level(arrival.level << 1 | 1u) : Backlog::kLevels - 1;
    const Nanos drained = drained_at(components_[model.component], last, now);
    Nanos at = drained;
    // The next batch makes room for one more request.
    const bool next_batch =
        group->work_ns == backlog.queued() && too_many && ahead == policy.queue_requests_max;
    if (next_batch) {
        const std::uint32_t rows = rows_queued(model, arrival.group);
        at = backlog.free_at(0, 0, now);
        // For which it may wait to fill.
        if (rows < group->awaited) {
            at = add_saturating(at, latency.expected(padded_rows(policy, rows)));
        }
    }
    // There it must be in time, too.
    if (arrival.deadline != kNever) {
        const std::uint32_t rows = std::max(group->target, std::max(request.rows, 1u));
        const Nanos end = add_saturating(drained, bound_ns(policy, latency, rows));
        if (end - arrival.deadline > at - now) at = drained;
    }
    return std::clamp(at - now, kRetryMinNs, kRetryMaxNs);
}

// Of a request of `rows` rows foreseen to be done at `end`. As was found by a close look; otherwise
// behind all that is queued.
Nanos Core::retry_late(const ModelState& model, const Arrival& arrival, std::uint32_t rows,
                       Nanos end, Nanos now) const {
    const RefusedLook& refused = model.refused;
    const Component& component = components_[model.component];
    const std::uint32_t level = arrival.level << 1 | (arrival.over_share ? 1u : 0u);
    const bool looked_at = refused.changes == component.backlog.changes() && now < refused.until &&
                           refused.group == arrival.key && refused.level == level &&
                           refused.rows == rows && refused.retry_at != kNever;
    const Nanos budget_ns = arrival.deadline - now;
    Nanos at = 0;
    if (looked_at) {
        at = add_saturating(refused.retry_at, std::max<Nanos>(refused.budget_ns - budget_ns, 0));
    } else if (component.backlog.queued() > 0) {
        // The executors may be busy with the last batches of it, large ones.
        const LatencyModel& latency = reference_latency(model);
        const std::uint32_t most = arrival.group == kNoSlot ? 1 : rows_queued(model, arrival.group);
        const Nanos batch_ns =
            std::max(component.batch_ns, latency.expected(padded_rows(model.policy, most)));
        const Nanos slack_ns = budget_ns - latency.expected(padded_rows(model.policy, rows));
        at = drained_at(component, backlog_level(level), now);
        if (const Group* group = arrival.group == kNoSlot ? nullptr : &model.groups[arrival.group];
            group != nullptr && group->work_ns == component.backlog.queued() && !component.levels) {
            // What is still there at its deadline is given up.
            at = std::clamp(group->order.back().deadline, now, at);
        }
        at = add_saturating(at, std::max<Nanos>(batch_ns - slack_ns, 0));
    } else {
        at = end - budget_ns;
    }
    return std::clamp(at - now, kRetryMinNs, kRetryMaxNs);
}

// Of a request that was given up in its queue, or was there at its deadline: as one like it would
// be told that came now and was refused, but not before a batch more may be done, since it was
// foreseen to be in time. 0: it had no time for the model even alone, or nothing is known.
Nanos Core::retry_given_up(const RequestRecord& request, Nanos now) const {
    const ModelState& model = models_[request.model];
    const bool foreseen = model.learns && model.reference != kNoSlot &&
                          model.component != kNoSlot && !rearrange_ && !request.sequential;
    if (!foreseen || components_[model.component].slots == 0) return 0;
    // In a batch as Triton forms them, formed before the model was told to batch by load.
    if (request.group == kNoSlot) return 0;
    Arrival again;
    again.at = now;
    again.group = request.group;
    again.key = model.groups[request.group].key;
    if (again.key.pin != kNoBackend) return 0;
    const bool splits = model.splits(again.key.mergeable);
    const std::uint32_t rows =
        std::max(splits ? std::min(request.rows, rows_limit(model.policy)) : request.rows, 1u);
    const Nanos budget_ns = request.deadline - request.arrival;
    const Nanos alone = reference_latency(model).expected(padded_rows(model.policy, rows));
    if (alone > budget_ns) return 0;
    again.deadline = add_saturating(now, budget_ns);
    again.level = again.asked_level = request.asked_level;
    again.over_share = request.over_share;
    const bool queued = components_[model.component].backlog.queued() > 0;
    const Nanos end = queued ? kNever : foreseen_end(model, again, rows, now);
    const Nanos retry_ns = retry_late(model, again, rows, end, now);
    return std::min(std::max(retry_ns, alone), kRetryMaxNs);
}

}  // namespace infersched::engine
