#include "engine/priority_cursor.h"

#include <algorithm>
#include <cmath>

namespace infersched::engine {
namespace {

constexpr double kShrink = 0.95;
constexpr double kGrow = 0.01;
constexpr double kShareMin = 0.01;
// Fewer ends than this say nothing about the highest priority: the window goes on.
constexpr std::uint64_t kEndsMin = 20;

std::size_t index_of(std::uint32_t level) {
    return std::min<std::size_t>(level - 1, PriorityCursor::kLevels - 1);
}

}  // namespace

bool PriorityCursor::offer(std::uint32_t level, Nanos now, double attainment) {
    const std::size_t index = index_of(level);
    if (now >= window_end_ || offered_total_ >= kWindowRequests) {
        adjust(attainment);
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

// The highest level with requests is what the others must leave room for; alone it is not shed.
void PriorityCursor::adjust(double attainment) {
    const auto first = std::find_if(offered_.begin(), offered_.end(), [](auto n) { return n > 0; });
    if (first == offered_.end()) {
        share_ = 1;
        return place();
    }
    const auto top = static_cast<std::size_t>(first - offered_.begin());
    const bool others = offered_[top] < offered_total_;
    // At the objective itself it would come and go: half of the misses it may have start it, and
    // what a few of them vary by.
    const double allowed = (1 - attainment) / 2 * static_cast<double>(ended_[top]);
    const bool misses = others && static_cast<double>(missed_[top]) > allowed + std::sqrt(allowed);
    if (misses && ended_[top] < kEndsMin) return;
    if (misses) {
        const auto offered = static_cast<double>(offered_total_);
        // Much of what is offered may be refused for other reasons: only less than what was let in
        // leaves more room.
        const double needed = static_cast<double>(*first) / offered;
        const double let_in = static_cast<double>(let_in_) / offered;
        const double less = std::max(kShrink * std::min(share_, let_in), share_ / 2);
        share_ = std::max({less, std::min(share_, needed), kShareMin});
        calm_ = 0;
    } else {
        share_ = std::min(share_ + kGrow * ++calm_, 1.0);
    }
    place();
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
            part_ = std::max(left, 0.0) / offered;
            return;
        }
        left -= offered;
        top = top && offered_[i] == 0;
    }
}

}  // namespace infersched::engine
