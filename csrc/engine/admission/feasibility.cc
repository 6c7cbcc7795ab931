// Whether a request can be in time, foreseen at its arrival.
//
//     an executor is free ── batches of others with earlier deadlines ── full batches of its own
//     group ── the batch that it is in
//
// Every term is kept up to date as work comes and goes: a forecast costs the same at any queue
// length. Expected times are used for what is before it, and for its own batch the bound, or the
// expected time when it is alone, as the batch former does when the time comes.
#include <algorithm>

#include "engine/admission/rows_before.h"
#include "engine/core.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {
namespace {

// What refuses all there is lets one through this often: latencies are only learned from what runs.
constexpr Nanos kProbeNs = kSecond;
// And what refuses a size, while smaller ones run: so many times what one is thought to take apart.
constexpr Nanos kSizeProbeTimes = 256;
// What was found late by a close look stands for others like it so long while nothing changes.
constexpr Nanos kLookKeptNs = kMillisecond;
// Effort for close looks that every request brings, and how much is saved up: a refusal must not
// cost more than an admission, however much is offered.
constexpr std::int64_t kLookCredit = 32;
constexpr std::int64_t kLookCreditMax = 1 << 17;
constexpr std::int64_t kRetryShare = 4;

// Rows of a batch of `rows` that starts in `wait_ns`: those of its level and the ones above it that
// come until then join it, up to the size that the load asks for.
std::uint32_t filled(const Group& group, std::uint32_t level, std::uint32_t rows, Nanos wait_ns,
                     std::uint32_t cap) {
    const double coming = group.rate.per_s() * group.mix.part_from(level) *
                          static_cast<double>(wait_ns) / static_cast<double>(kSecond);
    const double target = std::min(group.target_of(level), cap);
    return std::max(rows, static_cast<std::uint32_t>(std::min(rows + coming, target)));
}

}  // namespace

Backlog* Core::backlog_of(const ModelState& model) {
    if (rearrange_ || model.component == kNoSlot) return nullptr;
    return &components_[model.component].backlog;
}

// The first row of every batch brings the time of a batch, all of them their own. The batch must be
// started so long before the deadline as one of the size that the load asks for takes.
void Core::count_in(ModelState& model, Group& group, std::uint32_t slot, Nanos now) {
    RequestRecord& request = requests_[slot];
    const std::size_t level = backlog_level(request.queue_level());
    Nanos work = 0;
    Nanos start_by = request.deadline;
    if (model.reference != kNoSlot && request.deadline != kNever) {
        const LatencyModel& latency = planning_latency(model, group);
        const Nanos batch_ns = latency.expected(padded_rows(model.policy, group.target));
        // Those below it do not count, nor what has no deadline: they come with its batch, not it
        // with theirs.
        std::uint64_t ahead = 0;
        for (std::size_t l = 0; l <= level; ++l) {
            ahead += group.level_rows[l] - group.endless_rows[l];
        }
        const bool first = ahead % std::max(group.rows_fit, group.target) == 0;
        work = static_cast<Nanos>(latency.alpha_ns() * request.rows);
        if (first) work += static_cast<Nanos>(latency.beta_ns());
        start_by -= batch_ns;
    }
    group.work_ns += work;
    request.backlog = Backlog::place(level, start_by, work, now);
    group.count_rows(request);
    if (Backlog* backlog = backlog_of(model)) backlog->add(request.backlog);
    if (FairShares* shares = shares_of(model)) {
        shares->enter(request.tenant, weight_of(request.tenant), request.share_ns, now);
    }
}

void Core::count_rows_out(Group& group, const RequestRecord& request, std::uint32_t rows) {
    group.rows -= rows;
    group.level_rows[request.backlog.level] -= rows;
    if (request.deadline == kNever) group.endless_rows[request.backlog.level] -= rows;
}

void Core::count_out(ModelState& model, Group& group, const RequestRecord& request) {
    group.work_ns -= request.backlog.work_ns;
    Backlog* backlog = backlog_of(model);
    if (backlog == nullptr) return;
    backlog->remove(request.backlog);
    FairShares* shares = shares_of(model);
    if (shares == nullptr) return;
    if (request.dispatched) {
        shares->serve(request.tenant, request.share_ns);
    } else {
        shares->give_back(request.tenant, request.share_ns);
    }
}

// What a batch at a backend is expected to take.
Nanos Core::expected_ns(const BatchRecord& batch) {
    ModelState& model = models_[batch.model];
    const LatencyModel& latency = latency_of(model, *model.placement(batch.backend));
    return latency.known() ? latency.expected(rows_sent(model, batch)) : model.batch_ns;
}

// After components were made anew.
void Core::rebuild_backlogs(Nanos now) {
    for (Component& component : components_) component.backlog.reset();
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot)) continue;
        const BatchRecord& batch = batches_[slot];
        if (batch.backend == kNoBackend || !batch.counted) continue;
        Backlog* backlog = backlog_of(models_[batch.model]);
        if (backlog != nullptr) backlog->start(batch.counted_as);
    }
    for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
        if (!requests_.live(slot)) continue;
        const RequestRecord& request = requests_[slot];
        if (!request.queued || request.held || request.in_levels) continue;
        ModelState& model = models_[request.model];
        if (Backlog* backlog = backlog_of(model)) backlog->add(request.backlog);
        FairShares* shares = shares_of(model);
        if (shares == nullptr) continue;
        shares->enter(request.tenant, weight_of(request.tenant), request.share_ns, now);
    }
}

// When the batch with this request would be done, `rows` of it being in one.
Nanos Core::foreseen_end(const ModelState& model, const Arrival& arrival, std::uint32_t rows,
                         Nanos now) const {
    const Component& component = components_[model.component];
    const Backlog& backlog = component.backlog;
    const LatencyModel& latency = reference_latency(model);
    const std::uint32_t level = arrival.level << 1 | (arrival.over_share ? 1u : 0u);
    const std::size_t rank = backlog_level(level);
    const Group* group = arrival.group == kNoSlot ? nullptr : &model.groups[arrival.group];
    const std::uint32_t reserve =
        group != nullptr && group->reserve.binds(level) ? group->reserve.executors : 0;
    if (group != nullptr && group->order.empty()) group = nullptr;
    // An executor for it behind so many batches of others and of its own.
    const auto free_at = [&](std::uint32_t others, std::uint32_t own, Nanos batch_ns) {
        const Nanos at = backlog.free_at(others + own, batch_ns, now);
        return reserve == 0 ? at : std::max(at, backlog.place_at(reserve, own, batch_ns, now));
    };
    // Nothing waits behind it that its margin could be kept for.
    const Nanos alone = latency.expected(padded_rows(model.policy, rows));
    // Batches of other groups that must be started before `start_by`.
    const auto others = [&](Nanos start_by, Nanos own_ns) -> std::uint32_t {
        const Nanos group_ns = group == nullptr ? 0 : group->work_ns;
        if (backlog.queued() <= group_ns || component.batch_ns == 0) return 0;
        const Nanos work = backlog.queued_before(rank, start_by, now) - own_ns;
        return static_cast<std::uint32_t>(std::max<Nanos>(work, 0) / component.batch_ns);
    };
    const std::uint32_t before =
        group == nullptr ? 0 : rows_before(requests_, model, *group, level, arrival.deadline, now);
    if (before == 0) {
        const std::uint32_t batches = others(arrival.deadline - alone, 0);
        return add_saturating(free_at(batches, 0, component.batch_ns), alone);
    }
    const Nanos target_ns = latency.expected(padded_rows(model.policy, group->target));
    const QueueKey& head = group->head();
    const Nanos head_ns = requests_[head.slot].backlog.work_ns;
    const Nanos lead_start =
        free_at(others(head.deadline - target_ns, head_ns), 0, component.batch_ns);
    const std::uint32_t cap = std::max(rows_risked(model, group), rows);
    const std::uint32_t fit = latency.largest_within(head.deadline - lead_start, cap);
    const std::uint32_t full = std::clamp(std::max(fit, group->target_of(level)), 1u, cap);
    const Nanos full_ns =
        std::max(latency.expected(padded_rows(model.policy, full)), component.batch_ns);
    const auto done = [&](Nanos start, std::uint32_t with) {
        const std::uint32_t all = filled(*group, level, with, start - now, cap);
        return add_saturating(start, latency.bound(padded_rows(model.policy, all)));
    };
    Nanos start = lead_start;
    std::uint32_t batches = 0;
    if (before >= full) {
        batches = others(arrival.deadline - target_ns, group->work_ns);
        start = free_at(batches, before / full, full_ns);
    }
    const Nanos joined = done(start, std::min(before % full + rows, cap));
    if (joined <= arrival.deadline) return joined;
    // Or in the batch behind.
    return std::min(joined, done(free_at(batches, before / full + 1, full_ns), rows));
}

// The queue of a group as the batch former will find it; false: there is more than it looks at.
bool Core::list_ahead(const ModelState& model, const Group& group, Lookahead::Waiting* asked) {
    Lookahead::Group& ahead = lookahead_.add_group();
    ahead.policy = &model.policy;
    ahead.latency = &reference_latency(model);
    ahead.rows_trusted = rows_risked(model, &group);
    ahead.rows_single = rows_limit(model.policy, rows_allowed(model, group).single);
    ahead.merges = splits(model, group);
    ahead.reserve = group.reserve;
    ahead.target = group.order.empty() ? group.awaited : rows_awaited(model, group);
    ahead.gather_ns = group.gather_ns;
    ahead.rate = group.rate;
    if (!group.order.empty()) ahead.last_arrival = requests_[group.by_age.last].arrival;
    if (asked != nullptr) ahead.last_arrival = asked->arrival;
    for (const QueueKey& queued : group.order) {
        if (asked != nullptr && asked->key < queued) {
            lookahead_.add(*asked);
            asked = nullptr;
        }
        const RequestRecord& record = requests_[queued.slot];
        lookahead_.add({queued, record.arrival, std::max(record.rows_left(), 1u),
                        group.target_of(queued.level), false});
        if (lookahead_.full()) return false;
    }
    if (asked != nullptr) lookahead_.add(*asked);
    return true;
}

// What is queued for the executors of a component, beside the group of the request.
bool Core::list_others_ahead(const Component& component, const Group& own) {
    if (component.metered.size() > Lookahead::kModelsMax) return false;
    std::size_t seen = 0;
    for (const std::uint32_t index : component.metered) {
        const ModelState& model = models_[index];
        if (model.reference == kNoSlot) continue;
        const auto list = [&](std::uint32_t g) {
            if (++seen > Lookahead::kGroupsMax) return false;
            const Group& group = model.groups[g];
            return &group == &own || !planned(model, group) || list_ahead(model, group, nullptr);
        };
        for (const Pool::Ready& ready : model.shared.ready) {
            if (!list(ready.group)) return false;
        }
        for (const auto& waiting : model.shared.waiting) {
            if (!list(waiting.second)) return false;
        }
    }
    return true;
}

// Whether the batch former, run ahead over what is queued now, has no place for a request of
// `rows` rows that was foreseen to be late. Where that is not looked at, the forecast stands: where
// tenants share, or priorities above this one have load, it stands behind more than is queued now.
bool Core::surely_late(ModelState& model, const Arrival& arrival, std::uint32_t rows, Nanos now) {
    Component& component = components_[model.component];
    const std::uint32_t level = arrival.level << 1;
    RefusedLook& refused = model.refused;
    const bool alike = refused.changes == component.backlog.changes() && now < refused.until &&
                       refused.group == arrival.key && refused.level == level &&
                       rows >= refused.rows && arrival.deadline >= refused.deadline &&
                       arrival.deadline < refused.fits_from;
    if (alike || component.look_credit <= 0 || yields(model, level)) return true;
    if (FairShares* shares = shares_of(model); shares != nullptr && shares->contended())
        return true;
    Group none;
    none.key = arrival.key;
    const Group& own = arrival.group == kNoSlot ? none : model.groups[arrival.group];
    Lookahead::Waiting asked;
    asked.key = {level, kNoSlot, arrival.deadline, std::numeric_limits<std::uint64_t>::max()};
    asked.arrival = arrival.at;
    asked.rows = rows;
    asked.target = own.target_of(level);
    asked.asked_for = true;
    lookahead_.start(now, component.tick_at, component.slots,
                     model.shares ? component.behind : ~Levels{0});
    component.backlog.each_free(now, [&](Nanos at) { lookahead_.add_executor(at); });
    lookahead_.add_held(component.backlog.held());
    Lookahead::Verdict verdict = Lookahead::Verdict::kUnknown;
    if (list_ahead(model, own, &asked) && list_others_ahead(component, own)) {
        verdict = lookahead_.run();
    }
    const bool late = verdict == Lookahead::Verdict::kLate;
    const Nanos fits_from = lookahead_.fits_from();
    // Of the effort, what is left over: who is let in matters more.
    const bool more = late && lookahead_.effort() * kRetryShare < component.look_credit;
    Nanos retry_after = more ? lookahead_.retry_after() : 0;
    component.look_credit -= lookahead_.effort();
    // It would not be looked at as closely when it comes again.
    if (component.look_credit <= 0) retry_after = 0;
    if (late) {
        refused = {component.backlog.changes(),
                   add_saturating(now, kLookKeptNs),
                   arrival.deadline,
                   fits_from,
                   arrival.deadline - now,
                   retry_after == 0 ? kNever : add_saturating(now, retry_after),
                   arrival.key,
                   level,
                   rows};
    }
    return verdict != Lookahead::Verdict::kInTime;
}

// Only what has an objective is refused, and only by what is known.
Forecast Core::foresee(ModelState& model, const Request& request, const Arrival& arrival,
                       Nanos now) {
    Forecast forecast;
    const bool objective = arrival.deadline != kNever && (arrival.level & kBestEffortBit) == 0;
    if (!objective || !model.learns || model.component == kNoSlot || rearrange_) return forecast;
    Component& component = components_[model.component];
    // Nothing that it could go to: for how long is not known.
    if (component.slots == 0) return forecast;
    if (component.backlog.recount_at() <= now) count_pauses(component, now);
    component.look_credit = std::min(component.look_credit + kLookCredit, kLookCreditMax);
    // Where an executor is free, nothing has to make room.
    const bool let_in = !component.levels ||
                        component.cursor.offer(arrival.level, now, arrival.deadline - now,
                                               model.policy.attainment) ||
                        component.backlog.idle();
    ClassShare* share = class_share(model, arrival.asked_level);
    // Nor where tenants contend, of who has not had its share: that is fairer than models alike.
    FairShares* tenants = shares_of(model);
    const bool owed = tenants != nullptr && tenants->contended() && !arrival.over_share;
    const bool even = share == nullptr || share->offer() || owed || component.backlog.idle();
    const bool shed = (!let_in || !even) && !request.unconditional;
    if (shed) {
        forecast.reason = let_in ? Reason::kModelShare : Reason::kPriorityShed;
        forecast.retry_after_ns = PriorityCursor::kWindowNs;
        if (share != nullptr) share->count(false, false);
    }
    if (model.reference == kNoSlot) return forecast;
    const bool splits = model.splits(arrival.key.mergeable);
    const std::uint32_t rows =
        std::max(splits ? std::min(request.rows, rows_limit(model.policy)) : request.rows, 1u);
    const std::uint32_t padded = padded_rows(model.policy, rows);
    forecast.budget_ns = arrival.deadline - now;
    forecast.predicted_ns = reference_latency(model).expected(padded);
    if (forecast.predicted_ns > forecast.budget_ns && model.latencies_differ) {
        // Another one may be faster with it. Batches go there: what they do not go to is not
        // learned of, and must not refuse them.
        const std::uint32_t fastest = fastest_placement(model, padded, false);
        forecast.predicted_ns = latency_of(model, model.placements[fastest]).expected(padded);
        if (forecast.predicted_ns <= forecast.budget_ns) model.reference = fastest;
    }
    if (forecast.predicted_ns > forecast.budget_ns) {
        forecast.reason = Reason::kDeadlineInfeasible;
        forecast.retry_after_ns = 0;
    } else if (!shed && arrival.key.pin == kNoBackend) {
        const Nanos end = foreseen_end(model, arrival, rows, now);
        const bool in_time = end <= arrival.deadline;
        const bool fits =
            in_time || (request.rows <= rows && !surely_late(model, arrival, rows, now));
        const bool gives_way = fits && arrival.over_share && !component.backlog.idle() &&
                               tenants->gives_way(arrival.tenant, backlog_level(arrival.level << 1),
                                                  arrival.share_ns, now);
        if (fits && !gives_way) {
            if (component.levels) component.cursor.let_in();
            return forecast;
        }
        forecast.reason = arrival.over_share ? Reason::kTenantQuota : Reason::kPredictedLate;
        forecast.predicted_ns = end - now;
        forecast.retry_after_ns =
            gives_way ? FairShares::kDeniedKeptNs : retry_late(model, arrival, rows, end, now);
        if (component.levels) component.cursor.count(arrival.level, false);
        if (share != nullptr && !arrival.over_share) share->count(false, false);
    }
    if (!request.unconditional && forecast.reason != Reason::kNone) {
        const bool by_itself = forecast.reason == Reason::kDeadlineInfeasible && !shed;
        forecast.kept = probes(model, now) ||
                        (by_itself && probes_size(model, rows, forecast.predicted_ns, now));
    }
    if (request.unconditional || forecast.kept) forecast.reason = Reason::kNone;
    return forecast;
}

Admission Core::refuse_foreseen(ModelState& model, const Request& request, const Arrival& arrival,
                                const Forecast& forecast, Nanos now) {
    if (forecast.reason != Reason::kDeadlineInfeasible) {
        meter(model, request, arrival, now);
        if (FairShares* shares = shares_of(model)) shares->refuse(arrival.tenant, now);
        miss_share(model, arrival.tenant, arrival.level, arrival.deadline - now, arrival.share_ns,
                   now);
    }
    Admission refused = refuse(model, arrival, request.model, forecast.reason);
    refused.retry_after_ns = forecast.retry_after_ns;
    refused.predicted_ns = forecast.predicted_ns;
    refused.budget_ns = forecast.budget_ns;
    refused.deadline = arrival.deadline;
    return refused;
}

// Whether a request goes in against the forecast, because nothing has run for long, or what ran
// last makes it doubtful: it takes several batches to learn that a bad spell is over.
bool Core::probes(ModelState& model, Nanos now) const {
    if (model.waiting.total() > 0 || model.inflight_batches > 0) {
        model.refusing_since = kNever;
        return false;
    }
    if (model.refusing_since == kNever) model.refusing_since = now;
    const Nanos idle_ns = now - std::max(model.refusing_since, model.last_complete);
    if (!model.doubted && idle_ns < kProbeNs) return false;
    model.refusing_since = kNever;
    // It says so anew, if it is answered.
    model.doubted = false;
    return true;
}

bool Core::probes_size(ModelState& model, std::uint32_t rows, Nanos predicted_ns, Nanos now) const {
    Nanos apart = kNever;
    if (__builtin_mul_overflow(predicted_ns, kSizeProbeTimes, &apart)) apart = kNever;
    const bool idle = components_[model.component].backlog.idle();
    return model.size_probes.takes(rows, std::max(apart, kProbeNs), idle, now);
}

// Answered in time, or too late for reasons of load.
void Core::count_objective(ModelState& model, const RequestRecord& request, bool answered,
                           bool in_time, Nanos now) {
    if (!model.learns || rearrange_ || model.component == kNoSlot) return;
    if ((request.level & kBestEffortBit) != 0) return;
    Component& component = components_[model.component];
    if (component.levels) component.cursor.count(request.level, in_time);
    ClassShare* share = class_share(model, request.asked_level);
    if (share != nullptr) share->count(answered, in_time);
    if (!answered && !request.dispatched)
        miss_share(model, request.tenant, request.level, request.deadline - request.arrival,
                   request.share_ns, now);
}

}  // namespace infersched::engine
