#include "engine/queues/priority_cursor.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

constexpr double kShrink = 0.95;
constexpr double kGrow = 0.01;
constexpr double kShareMin = 0.01;
// Fewer ends than this say nothing about the highest priority: the window goes on.
constexpr std::uint64_t kEndsMin = 20;
// Windows that count as what was before shedding.
constexpr double kMemory = 16;
// What a trial takes: windows, and misses that would have come without shedding, enough to tell
// more than chance; and the part of those to which shedding must bring them.
constexpr std::uint32_t kTrialWindows = 4;
constexpr double kMissesMin = 12;
constexpr double kFewer = 0.6;
// Windows without shedding after a trial that failed.
constexpr std::uint32_t kRestMax = 128;
// A share below this multiple of what the highest priority needs has hardly anything left to shed.
constexpr double kNearly = 1.2;
// So many such windows, at most, until the misses without shedding are measured anew.
constexpr std::uint32_t kLeastMax = 128;
// Longer objectives than this are not waited for before the misses of a trial count.
constexpr Nanos kSettleMaxNs = 2 * kSecond;

std::size_t index_of(std::uint32_t level) {
    return std::min<std::size_t>(level - 1, PriorityCursor::kLevels - 1);
}

}  // namespace

bool PriorityCursor::offer(std::uint32_t level, Nanos now, Nanos budget_ns, double attainment) {
    const std::size_t index = index_of(level);
    budget_max_ns_ = std::max(budget_max_ns_, std::min(budget_ns, kSettleMaxNs));
    if (now >= window_end_ || offered_total_ >= kWindowRequests) {
        adjust(now, attainment);
        window_end_ = add_saturating(now, kWindowNs);
    }
    ++offered_total_;
    ++offered_[index];
    if (index != level_partly_) return index < level_partly_;
    credit_ += part_;
    if (credit_ < 1) return false;
    credit_ -= 1;
    return true;
}

void PriorityCursor::count(std::uint32_t level, bool in_time) {
    const std::size_t index = index_of(level);
    ++ended_[index];
    if (!in_time) ++missed_[index];
}

// At the objective itself it would come and go: half of the misses it may have start it, and what a
// few of them vary by.
bool PriorityCursor::misses(std::size_t top, double attainment) const {
    const double allowed = (1 - attainment) / 2 * static_cast<double>(ended_[top]);
    const bool others = offered_[top] < offered_total_;
    return others && static_cast<double>(missed_[top]) > allowed + std::sqrt(allowed);
}

// Counts the ends of a window, once what was let in before the last turn has ended.
void PriorityCursor::observe(std::size_t top) {
    if (window_start_ < settled_at_) return;
    const auto ended = static_cast<double>(ended_[top]);
    const auto missed = static_cast<double>(missed_[top]);
    if (share_ < 1) {
        trial_.ended += ended;
        trial_.missed += missed;
    } else {
        before_.ended += ended - before_.ended / kMemory;
        before_.missed += missed - before_.missed / kMemory;
    }
}

// What is let in from now on is something else than before.
void PriorityCursor::turn(Nanos now, Ends& of) {
    of = Ends();
    settled_at_ = add_saturating(now, budget_max_ns_);
}

// Shedding goes on while clearly fewer miss than before it; where they still do with hardly
// anything left to shed, that is measured anew from time to time.
void PriorityCursor::judge(Nanos now) {
    const double expected = before_.missed / std::max(before_.ended, 1.0) * trial_.ended;
    if (++trial_windows_ < kTrialWindows || expected < kMissesMin) return;
    const bool helps = trial_.missed <= kFewer * expected;
    trial_ = Ends();
    trial_windows_ = 0;
    if (helps) {
        rest_next_ = std::max(rest_next_ / 2, kRestMin);
        if (windows_least_ < least_next_) return;
        least_next_ = std::min(2 * least_next_, kLeastMax);
    } else {
        rest_ = rest_next_;
        rest_next_ = std::min(2 * rest_next_, kRestMax);
        least_next_ = kLeastMin;
    }
    share_ = 1;
    turn(now, before_);
}

// Much of what is offered may be refused for other reasons: only less than what was let in leaves
// more room.
void PriorityCursor::shed(std::size_t top, Nanos now) {
    if (share_ == 1) {
        turn(now, trial_);
        windows_least_ = trial_windows_ = 0;
    }
    const auto offered = static_cast<double>(offered_total_);
    const double needed = static_cast<double>(offered_[top]) / offered;
    const double let_in = static_cast<double>(let_in_) / offered;
    const double less = std::max(kShrink * std::min(share_, let_in), share_ / 2);
    share_ = std::max({less, std::min(share_, needed), kShareMin});
    if (share_ < kNearly * needed) ++windows_least_;
    calm_ = 0;
}

// The highest level with requests is what the others must leave room for; alone it is not shed.
void PriorityCursor::adjust(Nanos now, double attainment) {
    const auto first = std::find_if(offered_.begin(), offered_.end(), [](auto n) { return n > 0; });
    if (first == offered_.end()) {
        share_ = 1;
        return place();
    }
    const auto top = static_cast<std::size_t>(first - offered_.begin());
    const bool missing = misses(top, attainment);
    if (missing && ended_[top] < kEndsMin) return;
    observe(top);
    if (share_ < 1) judge(now);
    if (rest_ > 0) {
        --rest_;
    } else if (missing && (share_ < 1 || before_.missed >= kMissesMin)) {
        shed(top, now);
    } else if (share_ < 1) {
        share_ = std::min(share_ + kGrow * ++calm_, 1.0);
    }
    place();
    window_start_ = now;
    budget_max_ns_ = 0;
    offered_total_ = let_in_ = 0;
    offered_.fill(0);
    ended_.fill(0);
    missed_.fill(0);
}

// Where the share ends, going down the levels as they were offered in this window.
void PriorityCursor::place() {
    level_partly_ = kLevels;
    part_ = 1;
    if (share_ >= 1) return;
    double left = share_ * static_cast<double>(offered_total_);
    bool top = true;
    for (std::size_t i = 0; i < kLevels; ++i) {
        const auto offered = static_cast<double>(offered_[i]);
        if (offered > left && !top) {
            level_partly_ = static_cast<std::uint32_t>(i);
            part_ = left / offered;
            return;
        }
        left = std::max(left - offered, 0.0);
        top = top && offered_[i] == 0;
    }
}

}  // namespace infersched::engine
