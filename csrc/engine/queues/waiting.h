// How many requests of each priority level wait in the queue of a model.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/queues/priorities.h"

namespace infersched::engine {

class WaitingRequests {
  public:
    // By RequestRecord::asked_level.
    void add(std::uint32_t asked_level) {
        const std::size_t place = place_of(asked_level);
        if (place >= by_place_.size()) by_place_.resize(place + 1);
        ++by_place_[place];
        ++total_;
    }
    void remove(std::uint32_t asked_level) {
        --by_place_[place_of(asked_level)];
        --total_;
    }
    std::uint64_t total() const { return total_; }
    // Those of this level and the ones above it; best effort is below all levels.
    std::uint64_t down_to(std::uint32_t asked_level) const {
        const std::size_t last = place_of(asked_level);
        std::uint64_t requests = 0;
        for (std::size_t place = 0; place < by_place_.size(); ++place) {
            const bool above = place % 2 != last % 2 ? last % 2 == 1 : place <= last;
            requests += above ? by_place_[place] : 0;
        }
        return requests;
    }
    // Whether they are the same, whatever there was before. A check.
    bool operator==(const WaitingRequests& other) const {
        const std::size_t places = std::max(by_place_.size(), other.by_place_.size());
        for (std::size_t place = 0; place < places; ++place) {
            if (requests_at(place) != other.requests_at(place)) return false;
        }
        return total_ == other.total_;
    }
    // Whether there are `most` of them. A queue that is not full tells without adding up.
    bool reach(std::uint64_t most, std::uint32_t asked_level) const {
        return total_ >= most && down_to(asked_level) >= most;
    }

  private:
    // Further levels count as this one.
    static constexpr std::uint32_t kLevelsMax = 256;

    // Levels with an objective have even places, those without odd ones.
    static std::size_t place_of(std::uint32_t asked_level) {
        const std::size_t level = std::min(asked_level & kLevelMask, kLevelsMax);
        return 2 * level + ((asked_level & kBestEffortBit) != 0 ? 1 : 0);
    }

    std::uint32_t requests_at(std::size_t place) const {
        return place < by_place_.size() ? by_place_[place] : 0;
    }

    std::vector<std::uint32_t> by_place_;
    std::uint64_t total_ = 0;
};

}  // namespace infersched::engine
