// The work before the executors of one component: what runs, what is queued, and when an executor
// is through with the part of it that goes before a new request.
//
// Queued work is summed up by level and deadline, in rings of buckets of three widths; a request is
// counted in the finest one that spans its time. So no question walks the queue. Of a bucket that a
// deadline falls into, the part before it counts; work without a deadline, or with one beyond the
// rings, does not: who is unsure admits.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/time.h"
#include "engine/admission/held_batches.h"

namespace infersched::engine {

// Where a queued request is counted, and with how much.
struct BacklogPlace {
    Nanos work_ns = 0;
    std::uint8_t level = 0;
    std::uint8_t bucket = 0;
};

class Backlog {
  public:
    // Queue levels told apart; the last one stands for all below it.
    static constexpr std::size_t kLevels = 18;

    // No executors, nothing runs and nothing is queued.
    void reset() { *this = Backlog(); }
    void set_slots(std::uint32_t slots);

    // -- queued ----------------------------------------------------------------------------------
    static BacklogPlace place(std::size_t level, Nanos deadline, Nanos work_ns, Nanos now);
    // Whether this can be a place: those of loaded states may be anything.
    static bool sound(const BacklogPlace& place);
    void add(const BacklogPlace& place);
    void remove(const BacklogPlace& place);
    // Work of this level and the ones above it whose deadlines are not after `deadline`.
    Nanos queued_before(std::size_t level, Nanos deadline, Nanos now) const;
    Nanos queued() const { return queued_ns_; }

    // -- at the executors: running batches by when they are expected to end ----------------------
    void start(const RunningBatch& batch);
    void end(const RunningBatch& batch);
    // Of batches that have to leave executors to others (admission/held_batches.h).
    std::uint32_t places(std::uint32_t reserve, Nanos now) const;
    std::uint32_t barred_from(Nanos now) const { return held_.barred_from(slots_, now); }
    Nanos place_at(std::uint32_t reserve, std::uint32_t batches, Nanos batch_ns, Nanos now) const;
    const HeldBatches& held() const { return held_; }
    // -- executors that are sent nothing for a while after a failure, as if they ran until then --
    // One time of each of them that is free, sorted.
    void set_paused(const std::vector<Nanos>& until);
    // From when on the paused ones are to be counted anew.
    Nanos recount_at() const { return recount_at_; }
    void recount() { recount_at_ = std::numeric_limits<Nanos>::min(); }
    // Whether the same batches run, however they came to be known. A check.
    bool runs_as(Backlog other) const;

    // When an executor is free for what comes after a batch that starts now.
    Nanos free_beside(Nanos now) const;
    // How long one more batch may run so that all executors together are through in time with what
    // is queued of this level and the ones above it up to the horizon.
    Nanos room(std::size_t level, Nanos horizon_ns, Nanos now) const;
    bool idle() const { return ends_.size() < slots_; }
    // When an executor is free for a batch behind `batches` others that take `batch_ns` each.
    Nanos free_at(std::uint32_t batches, Nanos batch_ns, Nanos now) const;
    // How many executors are free, or will be by then.
    std::uint32_t free_by(Nanos at) const;
    std::uint32_t slots() const { return slots_; }
    // Goes up with every change.
    std::uint64_t changes() const { return changes_; }
    void set_changes(std::uint64_t changes) { changes_ = changes; }
    // When each executor is free, at most kEndsMax of them: the first ones.
    template <class Visit>
    void each_free(Nanos now, Visit visit) const {
        const std::size_t busy = std::min<std::size_t>(ends_.size(), slots_);
        const std::size_t idle = slots_ - busy;
        const std::size_t count = std::min<std::size_t>(slots_, kEndsMax);
        for (std::size_t i = 0; i < count; ++i) {
            visit(i < idle ? now : std::max(ends_[i - idle], now));
        }
    }

    // The paused executors.
    template <class Archive>
    void archive_paused(Archive& archive) {
        std::vector<Nanos> until = paused_;
        Nanos at = recount_at_;
        archive(until);
        archive(at);
        if constexpr (Archive::kReads) set_paused(until);
        recount_at_ = at;
    }

  private:
    static constexpr std::uint32_t kBuckets = 64;
    static_assert((kBuckets & (kBuckets - 1)) == 0);

    // Of a time in widths of a ring, whatever the clock.
    static std::uint32_t bucket_at(Nanos widths) {
        return static_cast<std::uint32_t>(static_cast<std::uint64_t>(widths) % kBuckets);
    }
    static constexpr std::array<std::uint32_t, 3> kShifts = {19, 23, 27};  // 0.5, 8, 134 ms
    // The times up to the horizon that are looked at, as parts of the last one.
    static constexpr std::array<Nanos, 4> kRoomParts = {1, 2, 3, 4};
    // A part of the time in so many that may be used beyond it: part of the work will share
    // batches.
    static constexpr Nanos kRoomMore = 16;
    static constexpr std::uint8_t kNowhere = 0xff;

    using Rings = std::array<Nanos, kBuckets * kShifts.size()>;

    std::vector<Rings> rings_;  // by level
    Nanos queued_ns_ = 0;
    std::vector<Nanos> ends_;    // sorted
    std::vector<Nanos> paused_;  // of them
    HeldBatches held_;           // those that leave executors to others
    Nanos recount_at_ = std::numeric_limits<Nanos>::min();
    std::uint32_t slots_ = 0;
    std::uint64_t changes_ = 0;
};

}  // namespace infersched::engine
