#include "engine/admission/lookahead.h"

#include <algorithm>
#include <functional>

#include "engine/batching/batch_former.h"
#include "engine/batching/blocking.h"
#include "engine/batching/load_rules.h"

namespace infersched::engine {
namespace {

// Of finding when one group may go, beside reading one queued row.
constexpr std::int64_t kLookEffort = 4;
// Times that are tried out for a request to come again, and how far they are apart at least.
constexpr std::uint32_t kWaitsTriedMax = 4;
constexpr Nanos kRetryMinNs = kMillisecond;
// Requests copied, or running batches looked at, with the effort of reading one.
constexpr std::int64_t kCopiedAtOnce = 8;

// Of what only fills batches of others, the rows. As Group::rows_due.
std::uint32_t rows_filling(const QueueKey& key, std::uint32_t rows) {
    const bool best_effort = (key.level & kBestEffortBit << 1) != 0;
    return best_effort || key.deadline == kNever ? rows : 0;
}

}  // namespace

void Lookahead::start(Nanos now, Nanos tick_at, std::uint32_t slots, Levels behind) {
    now_ = now;
    slots_ = slots;
    behind_ = behind;
    tick_at_ = tick_at;
    free_.clear();
    held_.clear();
    groups_.clear();
    waiting_.clear();
    reached_ = false;
    effort_ = 0;
}

Lookahead::Group& Lookahead::add_group() {
    Group& group = groups_.emplace_back();
    group.next = group.end = waiting_.size();
    return group;
}

void Lookahead::add(const Waiting& request) {
    waiting_.push_back(request);
    ++effort_;
    groups_.back().end = waiting_.size();
    groups_.back().rows += request.rows;
    groups_.back().filling += rows_filling(request.key, request.rows);
}

std::uint32_t Lookahead::lead_rows(const Group& group) const {
    const std::uint32_t rows = waiting_[group.next].rows;
    return std::max(group.merges ? std::min(rows, group.rows_single) : rows, 1u);
}

std::uint32_t Lookahead::cap(const Group& group) const {
    const std::uint32_t lead = lead_rows(group);
    return group.merges ? std::max(lead, group.rows_trusted) : lead;
}

// What a target may be by then.
std::uint32_t Lookahead::target(std::uint32_t known, Nanos at) const {
    if (at < tick_at_) return known;
    return static_cast<std::uint32_t>(std::max<std::int64_t>(std::int64_t{known} + shift_, 1));
}

// Rows that will have come by then, and are in no batch yet: behind all that wait now.
std::uint32_t Lookahead::coming(const Group& group, Nanos at) const {
    const auto ns = static_cast<double>(std::max<Nanos>(at - now_, 0));
    const double rows = coming_.usual ? group.rate.coming(ns) : group.rate.coming_surely(ns);
    return std::max(static_cast<std::uint32_t>(rows), group.came) - group.came;
}

// As Core::window_rows.
std::uint32_t Lookahead::window_rows(const Group& group, std::uint32_t wanted, Nanos at) {
    std::uint64_t rows = std::min(coming(group, at), wanted);
    auto window = static_cast<std::uint32_t>(rows);
    const std::uint32_t level = waiting_[group.next].key.level;
    for (std::size_t i = group.end; i > group.next; --i) {
        const Waiting& request = waiting_[i - 1];
        ++effort_;
        if (request.key.level != level) continue;
        rows += request.rows;
        if (rows > wanted) break;
        const auto taken = static_cast<std::uint32_t>(rows);
        if (add_saturating(at, bound_ns(*group.policy, *group.latency, taken)) >
            request.key.deadline) {
            break;
        }
        window = taken;
    }
    return window;
}

// As Core::give_up_late. False: the request that is asked for was given up.
bool Lookahead::give_up_late(Group& group, Nanos at) {
    std::uint32_t level = 0;
    std::uint32_t wanted = 0;
    while (group.next < group.end) {
        const Waiting& head = waiting_[group.next];
        const std::uint64_t rows = group.rows + coming(group, at);
        const std::uint32_t lead = lead_rows(group);
        if (head.key.level != level) {
            level = head.key.level;
            wanted = std::clamp(target(head.target, at), 1u, cap(group));
        }
        const auto worth = [&] {
            return std::max(lead,
                            static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, rows)));
        };
        Nanos end = 0;
        const auto late = [&] {
            const std::uint32_t size = padded_rows(*group.policy, worth());
            const bool alone = rows <= worth() && group.end - group.next == 1;
            end = add_saturating(
                at, alone ? group.latency->expected(size) : group.latency->bound(size));
            return end > head.key.deadline;
        };
        if (!late()) return true;
        wanted = std::min(wanted, std::max(window_rows(group, worth(), at), 1u));
        if (!late()) return true;
        if (head.asked_for) {
            fits_from_ = end;
            return false;
        }
        group.rows -= head.rows;
        group.filling -= rows_filling(head.key, head.rows);
        ++group.next;
    }
    return true;
}

// As Core::plan.
Lookahead::State Lookahead::look(Group& group, Nanos at, Nanos& ready_at) {
    if (group.next == group.end) return State::kEmpty;
    const Waiting& head = waiting_[group.next];
    const std::uint32_t most = cap(group);
    const std::uint64_t all = group.rows + (coming_.join ? coming(group, at) : 0);
    const auto queued = static_cast<std::uint32_t>(std::min<std::uint64_t>(all, most));
    const Nanos budget_ns = head.key.deadline - at;
    const std::uint32_t rows =
        std::max(lead_rows(group), rows_within(*group.policy, *group.latency, budget_ns, queued));
    group.planned_ns = bound_ns(*group.policy, *group.latency, rows);
    const std::uint64_t filling = rows_filling(head.key, 1) > 0 ? 0 : group.filling;
    const auto due = static_cast<std::uint32_t>(std::min<std::uint64_t>(all - filling, rows));
    group.key = head.key;
    group.key.deadline -= bound_ns(*group.policy, *group.latency, std::max(due, lead_rows(group)));
    const std::uint32_t full = target(group.target, at);
    if (rows < std::min(full, most)) {
        const Nanos slack = (head.key.deadline - head.arrival) / kSlackShare;
        const Nanos must_go =
            head.key.deadline - bound_ns(*group.policy, *group.latency, rows + 1) - slack;
        const Nanos patience = std::min(static_cast<Nanos>(full - rows) * group.gather_ns,
                                        group.latency->expected(padded_rows(*group.policy, rows)));
        const Nanos go_at = std::min(must_go, add_saturating(group.last_arrival, patience));
        if (go_at > at) {
            ready_at = std::min(ready_at, go_at);
            return State::kWaiting;
        }
    }
    return State::kReady;
}

// From when on one more batch of the group has a place beside those that leave executors to others.
Nanos Lookahead::left_from(const Group& group, Nanos at) {
    const Reserve& reserve = group.reserve;
    if (!reserve.binds(waiting_[group.next].key.level)) return at;
    effort_ += static_cast<std::int64_t>(held_.size()) / kCopiedAtOnce;
    return held_.place_at(reserve.executors, slots_, 0, 0, at);
}

// What goes first at the executor that `best` would get: of what still waits for more rows, the
// most urgent group that goes before it and must start before one is free again; else `best`.
Lookahead::Group* Lookahead::urgent_wait(Group& best, Nanos at) {
    Nanos free_at = add_saturating(at, best.planned_ns);
    if (free_.size() > 1) free_at = std::min(free_at, std::max(free_.front(), at));
    Group* first = &best;
    effort_ += static_cast<std::int64_t>(groups_.size());
    for (Group& group : groups_) {
        if (!group.waits || group.key.deadline >= free_at || !(group.key < first->key)) continue;
        if (!goes_before(group.key.level, best.key.level, behind_)) continue;
        if (left_from(group, at) <= at) first = &group;
    }
    return first;
}

// As Core::form_planned, but for its tries; when the batch is expected to end.
Nanos Lookahead::form(Group& group, Nanos at) {
    const std::uint32_t most = cap(group);
    Nanos earliest = kNever;
    std::uint32_t rows = 0;
    std::uint32_t passed_over = 0;
    std::size_t kept = group.next;
    std::size_t next = group.next;
    // Those passed over are put behind those taken, where they are the first ones left.
    for (; next < group.end && (group.merges || rows == 0) && rows < most; ++next) {
        const Waiting request = waiting_[next];
        ++effort_;
        if (rows > 0) {
            const Nanos deadline = std::min(earliest, request.key.deadline);
            const bool fits = request.rows <= most - rows &&
                              add_saturating(at, bound_ns(*group.policy, *group.latency,
                                                          rows + request.rows)) <= deadline;
            if (!fits) {
                if (++passed_over > kPassedOverMax) break;
                continue;
            }
        }
        earliest = std::min(earliest, request.key.deadline);
        const std::uint32_t part = rows == 0 ? std::min(request.rows, most) : request.rows;
        rows += part;
        group.rows -= part;
        group.filling -= rows_filling(request.key, part);
        reached_ |= request.asked_for;
        if (part < request.rows) {
            waiting_[next].rows -= part;
            break;
        }
        std::move_backward(waiting_.begin() + static_cast<std::ptrdiff_t>(kept),
                           waiting_.begin() + static_cast<std::ptrdiff_t>(next),
                           waiting_.begin() + static_cast<std::ptrdiff_t>(next) + 1);
        waiting_[kept++] = request;
    }
    group.next = kept;
    if (coming_.join && next == group.end && group.merges) {
        const std::uint32_t fit = rows_within(*group.policy, *group.latency, earliest - at, most);
        const std::uint32_t more = std::min(std::max(fit, rows) - rows, coming(group, at));
        group.came += more;
        rows += more;
    }
    const Nanos end =
        add_saturating(at, group.latency->expected(padded_rows(*group.policy, std::max(rows, 1u))));
    if (group.reserve.executors > 0) held_.add({end, group.reserve.executors});
    return end;
}

// To what was added, for another run.
void Lookahead::restore() {
    free_ = all_free_;
    held_ = all_held_;
    groups_ = all_groups_;
    waiting_ = all_waiting_;
    effort_ += static_cast<std::int64_t>(waiting_.size()) / kCopiedAtOnce +
               static_cast<std::int64_t>(groups_.size());
}

Lookahead::Verdict Lookahead::run() {
    all_free_ = free_;
    all_held_ = held_;
    all_groups_ = groups_;
    all_waiting_ = waiting_;
    Nanos fits_from = kNever;
    for (const int shift : {0, 1, -1}) {
        shift_ = shift;
        for (const Coming coming : kComings) {
            restore();
            const Verdict verdict = run(coming);
            if (verdict != Verdict::kLate) return verdict;
            fits_from = std::min(fits_from, fits_from_);
        }
        if (ended_at_ < tick_at_) break;
    }
    fits_from_ = fits_from;
    return Verdict::kLate;
}

Nanos Lookahead::retry_after() {
    Nanos wait_ns = kRetryMinNs;
    for (std::uint32_t tries = 0; tries < kWaitsTriedMax; ++tries) {
        Nanos late_ns = 0;
        if (fits_after(wait_ns, late_ns)) return wait_ns;
        wait_ns += std::max(late_ns, kRetryMinNs << tries);
    }
    return 0;
}

// Whether the request is in time if it comes again later and nothing else does.
bool Lookahead::fits_after(Nanos wait_ns, Nanos& late_ns) {
    restore();
    shift_ = 0;
    Group& own = groups_.front();
    const auto end = waiting_.begin() + static_cast<std::ptrdiff_t>(own.end);
    const auto asked = std::find_if(waiting_.begin() + static_cast<std::ptrdiff_t>(own.next), end,
                                    [](const Waiting& request) { return request.asked_for; });
    if (asked == end) return false;
    asked->key.deadline = add_saturating(asked->key.deadline, wait_ns);
    own.rows -= asked->rows;
    --own.end;
    std::rotate(asked, asked + 1, end);
    comes_at_ = add_saturating(now_, wait_ns);
    const Nanos deadline = waiting_[own.end].key.deadline;
    const Verdict verdict = run(Coming());
    comes_at_ = kNever;
    late_ns = fits_from_ - deadline;
    return verdict == Verdict::kInTime;
}

// The request, which was kept behind those of its group.
void Lookahead::comes() {
    Group& own = groups_.front();
    const auto asked = waiting_.begin() + static_cast<std::ptrdiff_t>(own.end++);
    own.rows += asked->rows;
    own.last_arrival = asked->arrival = comes_at_;
    const auto behind =
        std::find_if(waiting_.begin() + static_cast<std::ptrdiff_t>(own.next), asked,
                     [&](const Waiting& request) { return asked->key < request.key; });
    std::rotate(behind, asked, asked + 1);
    comes_at_ = kNever;
}

Lookahead::Verdict Lookahead::run(Coming coming) {
    coming_ = coming;
    reached_ = false;
    fits_from_ = 0;
    const auto later = std::greater<>();
    std::make_heap(free_.begin(), free_.end(), later);
    if (free_.empty()) return Verdict::kUnknown;
    for (std::uint32_t step = 0; step < kBatchesMax; ++step) {
        std::pop_heap(free_.begin(), free_.end(), later);
        const Nanos at = ended_at_ = std::max(free_.back(), now_);
        if (comes_at_ != kNever && at >= comes_at_) comes();
        effort_ += static_cast<std::int64_t>(held_.size()) / kCopiedAtOnce;
        held_.remove_ended(at);
        Group* best = nullptr;
        bool waits = false;
        Nanos ready_at = comes_at_;
        effort_ += kLookEffort * static_cast<std::int64_t>(groups_.size());
        for (Group& group : groups_) {
            if (!give_up_late(group, at)) return Verdict::kLate;
            const State state = look(group, at, ready_at);
            group.waits = state == State::kWaiting;
            waits |= group.waits;
            if (state != State::kReady) continue;
            if (const Nanos from = left_from(group, at); from > at) {
                ready_at = std::min(ready_at, from);
                continue;
            }
            if (best == nullptr || group.key < best->key) best = &group;
        }
        if (best != nullptr && waits) best = urgent_wait(*best, at);
        if (best == nullptr && ready_at == kNever) return Verdict::kUnknown;
        free_.back() = best == nullptr ? ready_at : form(*best, at);
        if (reached_) return Verdict::kInTime;
        if (effort_ > kEffortMax) return Verdict::kUnknown;
        std::push_heap(free_.begin(), free_.end(), later);
    }
    return Verdict::kUnknown;
}

}  // namespace infersched::engine
