// Which priorities overload leaves room for, found out by trying.
//
// Each of many requests of low priority may be in time by itself and all of them together still
// come between the executors and the high priorities that arrive after them. So the part of the
// offered requests that is let in shrinks while the highest priority misses its objective, and
// grows slowly otherwise (after Zhou et al., "Overload control for scaling WeChat microservices",
// 2018). What is shed are the lowest levels, and inside the last level that is let in partly, an
// even part.
//
// Often the highest priority misses for reasons that shedding does not change: batches of its own
// kind, or more of it than there is room for. So shedding is a trial: where the misses did not
// become clearly fewer than without, it is given up, and tried again after a rest that doubles.
// Where they did but go on although next to nothing of the others is let in, what they would be
// without is measured anew: load changes.
#pragma once

#include <array>
#include <cstdint>

#include "base/time.h"

namespace infersched::engine {

class PriorityCursor {
  public:
    static constexpr std::size_t kLevels = 8;  // further ones count as the last
    static constexpr Nanos kWindowNs = 150 * kMillisecond;
    static constexpr std::uint64_t kWindowRequests = 2000;

    // A request of `level` (1 = highest) that has an objective, `budget_ns` from now. False: it is
    // to be shed.
    bool offer(std::uint32_t level, Nanos now, Nanos budget_ns, double attainment);
    // The request that was offered last is let in.
    void let_in() { ++let_in_; }
    // How a request of `level` with an objective ended: in time, or too late for reasons of load.
    void count(std::uint32_t level, bool in_time);
    // The part of the offered requests that is let in.
    double share() const { return share_; }

    template <class Archive>
    void archive(Archive& archive) {
        archive(share_);
        archive(calm_);
        archive(rest_);
        archive(rest_next_);
        archive(windows_least_);
        archive(trial_windows_);
        archive(least_next_);
        archive(before_.ended);
        archive(before_.missed);
        archive(trial_.ended);
        archive(trial_.missed);
        archive(settled_at_);
        archive(window_start_);
        archive(window_end_);
        archive(budget_max_ns_);
        archive(offered_total_);
        archive(let_in_);
        for (std::uint64_t* words : {offered_.data(), ended_.data(), missed_.data()}) {
            for (std::size_t i = 0; i < kLevels; ++i) archive(words[i]);
        }
        archive(level_partly_);
        archive(part_);
        archive(credit_);
    }

  private:
    static constexpr std::uint32_t kRestMin = 8;
    static constexpr std::uint32_t kLeastMin = 8;

    // Ends of the highest priority.
    struct Ends {
        double ended = 0;
        double missed = 0;
    };

    void adjust(Nanos now, double attainment);
    bool misses(std::size_t top, double attainment) const;
    void observe(std::size_t top);
    void turn(Nanos now, Ends& of);
    void judge(Nanos now);
    void shed(std::size_t top, Nanos now);
    void place();

    double share_ = 1;
    std::uint32_t rest_ = 0;  // windows until shedding is tried again
    std::uint32_t rest_next_ = kRestMin;
    std::uint32_t windows_least_ = 0;  // with hardly anything left to shed
    std::uint32_t trial_windows_ = 0;
    std::uint32_t least_next_ = kLeastMin;  // until the misses without shedding are measured anew
    Ends before_;                           // while nothing was shed, the older the less
    Ends trial_;                            // since then
    std::uint32_t calm_ = 0;                // windows since the last one with too many misses
    Nanos settled_at_ = 0;                  // from when on a trial counts
    Nanos window_start_ = 0;
    Nanos window_end_ = 0;
    Nanos budget_max_ns_ = 0;          // in this window
    std::uint64_t offered_total_ = 0;  // in this window
    std::uint64_t let_in_ = 0;
    std::array<std::uint64_t, kLevels> offered_{};
    std::array<std::uint64_t, kLevels> ended_{};
    std::array<std::uint64_t, kLevels> missed_{};
    // Levels above this index are let in, those below are not, and of it this part.
    std::uint32_t level_partly_ = kLevels;
    double part_ = 1;
    double credit_ = 0;
};

}  // namespace infersched::engine
