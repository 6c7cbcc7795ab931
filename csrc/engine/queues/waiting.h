// How many requests of each priority level wait in the queue of a model, and their bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/queues/priorities.h"

namespace infersched::engine {

// Where a level is counted. Levels with an objective have even places, those without odd ones.
inline std::size_t queue_place(std::uint32_t asked_level) {
    constexpr std::uint32_t kLevelsMax = 256;  // further levels count as this one
    const std::size_t level = std::min(asked_level & kLevelMask, kLevelsMax);
    return 2 * level + ((asked_level & kBestEffortBit) != 0 ? 1 : 0);
}

// Whether a place is that of a level or of one above it; best effort is below all levels.
inline bool is_above(std::size_t place, std::size_t last) {
    return place % 2 != last % 2 ? last % 2 == 1 : place <= last;
}

struct Waiting {
    std::uint64_t requests = 0;
    std::uint64_t bytes = 0;

    bool operator==(const Waiting& other) const {
        return requests == other.requests && bytes == other.bytes;
    }
};

class WaitingRequests {
  public:
    // By RequestRecord::asked_level.
    void add(std::uint32_t asked_level, std::uint64_t bytes) {
        const std::size_t place = queue_place(asked_level);
        if (place >= by_place_.size()) by_place_.resize(place + 1);
        ++by_place_[place].requests;
        by_place_[place].bytes += bytes;
        ++total_.requests;
        total_.bytes += bytes;
    }
    void remove(std::uint32_t asked_level, std::uint64_t bytes) {
        Waiting& own = by_place_[queue_place(asked_level)];
        --own.requests;
        own.bytes -= bytes;
        --total_.requests;
        total_.bytes -= bytes;
    }
    std::uint64_t total() const { return total_.requests; }
    std::uint64_t bytes() const { return total_.bytes; }
    // Those of this level and the ones above it.
    Waiting down_to(std::uint32_t asked_level) const {
        const std::size_t last = queue_place(asked_level);
        Waiting found;
        for (std::size_t place = 0; place < by_place_.size(); ++place) {
            if (!is_above(place, last)) continue;
            found.requests += by_place_[place].requests;
            found.bytes += by_place_[place].bytes;
        }
        return found;
    }
    // Whether they are the same, whatever there was before. A check.
    bool operator==(const WaitingRequests& other) const {
        const std::size_t places = std::max(by_place_.size(), other.by_place_.size());
        for (std::size_t place = 0; place < places; ++place) {
            if (!(at(place) == other.at(place))) return false;
        }
        return total_ == other.total_;
    }
    // Whether there are `most` of them. A queue that is not full tells without adding up.
    bool reach(std::uint64_t most, std::uint32_t asked_level) const {
        return total_.requests >= most && down_to(asked_level).requests >= most;
    }
    // Whether so many bytes more are at most `most`; the same.
    bool has_room(std::uint64_t bytes, std::uint64_t most, std::uint32_t asked_level) const {
        if (bytes > most) return false;
        return total_.bytes <= most - bytes || down_to(asked_level).bytes <= most - bytes;
    }

  private:
    Waiting at(std::size_t place) const {
        return place < by_place_.size() ? by_place_[place] : Waiting();
    }

    std::vector<Waiting> by_place_;
    Waiting total_;
};

}  // namespace infersched::engine
