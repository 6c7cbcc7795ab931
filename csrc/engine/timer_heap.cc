#include "engine/timer_heap.h"

#include <algorithm>

namespace infersched::engine {
namespace {
constexpr std::size_t kArity = 4;
}

void TimerHeap::sift_up(std::size_t position, const Timer& timer) {
    while (position > 0) {
        const std::size_t parent = (position - 1) / kArity;
        if (!before(timer, timers_[parent])) break;
        place(position, timers_[parent]);
        position = parent;
    }
    place(position, timer);
}

void TimerHeap::sift_down(std::size_t position, const Timer& timer) {
    const std::size_t size = timers_.size();
    for (;;) {
        const std::size_t first = position * kArity + 1;
        if (first >= size) break;
        const std::size_t end = std::min(first + kArity, size);
        std::size_t least = first;
        for (std::size_t child = first + 1; child < end; ++child) {
            if (before(timers_[child], timers_[least])) least = child;
        }
        if (!before(timers_[least], timer)) break;
        place(position, timers_[least]);
        position = least;
    }
    place(position, timer);
}

void TimerHeap::push(const Timer& timer) {
    if (timer.slot >= positions_.size()) positions_.resize(timer.slot + 1, kNoSlot);
    timers_.push_back(timer);
    sift_up(timers_.size() - 1, timer);
}

void TimerHeap::erase(std::uint32_t slot) {
    if (!contains(slot)) return;
    const std::size_t position = positions_[slot];
    positions_[slot] = kNoSlot;
    const Timer last = timers_.back();
    timers_.pop_back();
    if (position == timers_.size()) return;
    if (position > 0 && before(last, timers_[(position - 1) / kArity])) {
        sift_up(position, last);
    } else {
        sift_down(position, last);
    }
}

void TimerHeap::set(const Timer& timer) {
    if (contains(timer.slot)) {
        if (at(timer.slot) == timer.at) return;
        erase(timer.slot);
    }
    if (timer.at != kNever) push(timer);
}

bool TimerHeap::consistent() const {
    for (std::size_t i = 0; i < timers_.size(); ++i) {
        if (i > 0 && before(timers_[i], timers_[(i - 1) / kArity])) return false;
        if (positions_[timers_[i].slot] != i) return false;
    }
    return true;
}

}  // namespace infersched::engine
