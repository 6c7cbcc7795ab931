// Earliest-first heap of moments, one per slot, removable in O(log n).
#pragma once

#include <cstdint>
#include <vector>

#include "base/time.h"
#include "engine/slot_map.h"

namespace infersched::engine {

// A 4-ary heap ordered by (at, sequence). Sequences are unique, so the order of removal does not
// depend on the order of insertion.
class TimerHeap {
  public:
    struct Timer {
        Nanos at;
        std::uint64_t sequence;
        std::uint32_t slot;
    };

    bool empty() const { return timers_.empty(); }
    std::size_t size() const { return timers_.size(); }
    const Timer& top() const { return timers_.front(); }
    bool contains(std::uint32_t slot) const {
        return slot < positions_.size() && positions_[slot] != kNoSlot;
    }
    void prefetch(std::uint32_t slot) const {
        if (slot < positions_.size()) __builtin_prefetch(&positions_[slot], 1);
    }
    Nanos at(std::uint32_t slot) const { return timers_[positions_[slot]].at; }

    void push(const Timer& timer);
    void erase(std::uint32_t slot);
    // Sets, moves or (kNever) removes the timer of a slot.
    void set(const Timer& timer);
    bool consistent() const;

  private:
    static bool before(const Timer& a, const Timer& b) {
        return a.at != b.at ? a.at < b.at : a.sequence < b.sequence;
    }
    void place(std::size_t position, const Timer& timer) {
        timers_[position] = timer;
        positions_[timer.slot] = static_cast<std::uint32_t>(position);
    }
    void sift_up(std::size_t position, const Timer& timer);
    void sift_down(std::size_t position, const Timer& timer);

    std::vector<Timer> timers_;
    std::vector<std::uint32_t> positions_;  // by slot; kNoSlot = not in the heap
};

}  // namespace infersched::engine
