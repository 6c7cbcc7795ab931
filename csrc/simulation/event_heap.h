// What happens next: a binary heap of events by time, in the order of their making where times tie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"

namespace infersched::simulation {

enum class EventKind : std::uint8_t {
    kArrival,
    kBatchEnd,
    kFaultBegins,
    kFaultEnds,
    kReading,  // of a device
    // Of the engine's backends.
    kBatchArrives,
    kReply,
};

struct Event {
    Nanos at = 0;
    std::uint64_t order = 0;       // unique: equal times never compare equal
    std::uint64_t generation = 0;  // of the executor, or the batch
    std::uint32_t index = 0;       // model of an arrival, executor or slot of a batch, fault
    EventKind kind = EventKind::kArrival;
};

class EventHeap {
  public:
    void push(Nanos at, EventKind kind, std::uint32_t index, std::uint64_t generation = 0) {
        events_.push_back({at, order_++, generation, index, kind});
        std::push_heap(events_.begin(), events_.end(), later);
    }
    Event pop() {
        std::pop_heap(events_.begin(), events_.end(), later);
        const Event event = events_.back();
        events_.pop_back();
        return event;
    }
    std::size_t size() const { return events_.size(); }
    // kNever when there is none.
    Nanos next() const { return events_.empty() ? kNever : events_.front().at; }

  private:
    static bool later(const Event& a, const Event& b) {
        return a.at != b.at ? a.at > b.at : a.order > b.order;
    }

    std::vector<Event> events_;
    std::uint64_t order_ = 0;
};

}  // namespace infersched::simulation
