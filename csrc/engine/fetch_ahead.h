// Fetches the records that a walk along a queue comes to next: in a long queue every one of them is
// a cache miss, and several at once take as long as one.
#pragma once

#include <cstddef>

#include "engine/queues/queue_order.h"
#include "engine/records.h"
#include "engine/timer_heap.h"

namespace infersched::engine {

// Requests whose records are fetched before they are needed.
inline constexpr std::size_t kFetchAhead = 8;

class FetchAhead {
  public:
    FetchAhead() = default;
    FetchAhead(const Requests& requests, const TimerHeap& timers, const QueueOrder& order)
        : requests_(&requests), timers_(&timers), next_(order.begin()), end_(order.end()) {
        for (std::size_t i = 0; i < kFetchAhead; ++i) advance();
    }
    // With every step of the walk.
    void advance() {
        if (next_ == end_) return;
        requests_->prefetch(next_->slot);
        timers_->prefetch(next_->slot);
        ++next_;
    }

  private:
    const Requests* requests_ = nullptr;
    const TimerHeap* timers_ = nullptr;
    QueueOrder::Iterator next_;
    QueueOrder::Iterator end_;
};

}  // namespace infersched::engine
