// How long batches may hold an executor for the sake of what is above them.
//
// A batch is not taken back. Where a request of a higher priority comes just after a batch of lower
// priority went to the last free executor, it waits for that batch, and with it all others of its
// kind that come meanwhile. So a batch takes rows of a level only while what comes above that level
// in the meantime, by the metered rates, is still answered in time (after the blocking term of
// schedulability analysis: Baker, "Stack-based scheduling of realtime processes", 1991).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "base/time.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {

// Priority levels told apart where arrivals are metered; further ones count as the last.
inline constexpr std::size_t kMeteredLevels = 8;

// Of a RequestRecord::queue_level, from 0; kMeteredLevels: without an objective.
inline std::size_t metered_level(std::uint32_t queue_level) {
    if ((queue_level & kBestEffortBit << 1) != 0) return kMeteredLevels;
    return std::min<std::size_t>(std::max(queue_level / 2, 1u) - 1, kMeteredLevels - 1);
}

// Metered levels, one bit each.
using Levels = std::uint32_t;

// Whether what waits, of the one queue level, may go before a batch of the other that would go now.
// Below a level that has what it asks for, what goes first would cost more than it gains.
inline bool goes_before(std::uint32_t queue_level, std::uint32_t other, Levels behind) {
    const std::size_t level = metered_level(queue_level);
    const std::size_t next = metered_level(other);
    return level >= next || next >= kMeteredLevels || (behind >> level & 1u) != 0;
}

// How the arrivals of a group spread over the levels.
class LevelMix {
  public:
    void count(std::size_t level, Nanos budget_ns) {
        const auto budget = static_cast<float>(budget_ns);
        const float memory = started_ ? kMemory : 1.0f;
        started_ = true;
        for (std::size_t l = 0; l < kMeteredLevels; ++l) {
            part_[l] += ((l == level ? 1.0f : 0.0f) - part_[l]) / memory;
        }
        float& known = budget_ns_[level];
        known = known == 0 ? budget : known + (budget - known) / kBudgetMemory;
    }
    // The part of the arrivals that is of this level; 0 where it is next to none.
    double part(std::size_t level) const { return part_[level] < kPartMin ? 0 : part_[level]; }
    // Of this level and those above it; 1 where nothing is known.
    double part_from(std::uint32_t queue_level) const {
        const std::size_t level = metered_level(queue_level);
        if (level >= kMeteredLevels || !started_) return 1;
        double sum = 0;
        for (std::size_t l = 0; l <= level; ++l) sum += part_[l];
        return sum;
    }
    // The lowest one that some are of.
    std::uint32_t lowest() const {
        std::uint32_t level = kMeteredLevels - 1;
        while (level > 0 && part(level) == 0) --level;
        return level;
    }
    // Nothing of this level comes any more.
    void forget(std::size_t level) { part_[level] = 0; }
    // Moving average of the time from arrival to deadline: of this level, or the next one above it
    // that some are of.
    double budget_ns(std::size_t level) const {
        while (level > 0 && part(level) == 0) --level;
        return budget_ns_[level];
    }

    template <class Archive>
    void archive(Archive& archive) {
        archive(started_);
        for (float& part : part_) archive(part);
        for (float& budget : budget_ns_) archive(budget);
    }

  private:
    static constexpr float kMemory = 128;  // requests
    static constexpr float kBudgetMemory = 16;
    static constexpr float kPartMin = 1e-3f;

    bool started_ = false;
    std::array<float, kMeteredLevels> part_{};
    std::array<float, kMeteredLevels> budget_ns_{};
};

// What a batch with requests of a level has to leave to the levels above.
struct Hold {
    // How long it may hold the only executor that is free in time.
    Nanos alone_ns = kNever;
    bool by_means = false;  // that is by what is expected of it, and not by its bound
    Nanos horizon_ns = 0;   // up to when what is queued above must find room; 0: there is none

    // The bound up to which a batch whose latency has this margin may be alone.
    Nanos alone_bound(double margin) const {
        constexpr auto kMost = static_cast<double>(kNever / 2);
        const auto ns = static_cast<double>(alone_ns) * (by_means ? margin : 1);
        return static_cast<Nanos>(std::min(ns, kMost));
    }
};
// By metered level, the last one for what has no objective.
using Holds = std::array<Hold, kMeteredLevels + 1>;

}  // namespace infersched::engine
