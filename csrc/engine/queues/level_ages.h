// What waits in the queue of a model by priority level, in the order in which it came: where a
// bound is set on its age, what is of lower levels may be older. Without one nothing is listed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "engine/queues/waiting.h"
#include "engine/records.h"

namespace infersched::engine {

class LevelAges {
  public:
    void add(SlotMap<RequestRecord>& requests, std::uint32_t slot) {
        const std::size_t place = queue_place(requests[slot].asked_level);
        if (place >= by_place_.size()) by_place_.resize(place + 1);
        by_place_[place].append<&RequestRecord::in_place>(requests, slot);
    }
    void remove(SlotMap<RequestRecord>& requests, std::uint32_t slot) {
        const std::size_t place = queue_place(requests[slot].asked_level);
        by_place_[place].unlink<&RequestRecord::in_place>(requests, slot);
    }
    void clear() { by_place_.clear(); }
    // Whether the first of this level, or of one above it, came longer ago than that. One whose
    // model had to be loaded waited for that instead.
    bool older(const SlotMap<RequestRecord>& requests, std::uint32_t asked_level, Nanos most_ns,
               Nanos now) const {
        for (std::size_t place = 0; place < by_place_.size(); ++place) {
            const std::uint32_t first = by_place_[place].first;
            if (first == kNoSlot || !is_above(place, queue_place(asked_level))) continue;
            const RequestRecord& request = requests[first];
            if (!request.admitted_late && now - request.arrival > most_ns) return true;
        }
        return false;
    }
    // A check.
    std::size_t listed(const SlotMap<RequestRecord>& requests) const {
        std::size_t found = 0;
        for (std::size_t place = 0; place < by_place_.size(); ++place) {
            std::uint64_t last = 0;
            for (std::uint32_t slot = by_place_[place].first; slot != kNoSlot;
                 slot = requests[slot].in_place.next) {
                const RequestRecord& request = requests[slot];
                const bool sound = request.queued && request.sequence > last &&
                                   queue_place(request.asked_level) == place;
                found += sound ? 1 : 0;
                last = request.sequence;
            }
        }
        return found;
    }

  private:
    std::vector<RequestList> by_place_;
};

}  // namespace infersched::engine
