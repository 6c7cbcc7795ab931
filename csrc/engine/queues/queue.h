// The queue of one model: groups of requests that may share a batch, indexed by their most urgent
// one.
//
// A group orders its requests by (level, deadline, arrival), so that its first request leads a
// batch and the following ones fill it: the same level first, then lower ones. A pool holds the
// groups that may go to the same backends: one pool for all placements, and one a placement for
// pinned requests. `ready` names the groups that may be dispatched now, the most urgent first;
// `waiting` those that wait for more rows, the first to become ready first.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <limits>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/admission/backlog.h"
#include "engine/batching/blocking.h"
#include "engine/batching/rates.h"
#include "engine/batching/reserve.h"
#include "engine/records.h"

namespace infersched::engine {

struct GroupKey {
    std::uint64_t signature = 0;
    std::uint32_t pin = kNoBackend;
    bool mergeable = true;

    bool operator==(const GroupKey& other) const {
        return signature == other.signature && pin == other.pin && mergeable == other.mergeable;
    }
};

struct GroupKeyHash {
    std::size_t operator()(const GroupKey& key) const {
        const std::uint64_t mixed = (key.signature ^ key.pin) * 0x9e3779b97f4a7c15ull;
        return static_cast<std::size_t>((mixed ^ mixed >> 32) + key.mergeable);
    }
};

struct Group {
    enum class Index : std::uint8_t { kNone, kReady, kWaiting };

    GroupKey key;
    QueueOrder order;
    // By level: the first request of it. Only these have a timer, the others' deadlines are later.
    std::vector<QueueKey> timed;
    RequestList by_age;
    std::uint64_t rows = 0;
    Index index = Index::kNone;
    QueueKey ready_key;       // under which it is in Pool::ready, or would be
    Nanos ready_at = kNever;  // under which it is in Pool::waiting
    // Where batches are formed by learned latency (batching/load_aware.cc).
    RateMeter rate;  // of arrivals with a deadline
    LevelMix mix;
    Nanos budget_ns = 0;          // moving average of their time from arrival to deadline
    std::uint32_t target = 1;     // rows that the present load asks of a batch
    std::uint32_t awaited = 1;    // rows that are worth waiting for
    std::uint32_t rows_fit = 64;  // rows of the largest batch that staggered executors do in time
    Reserve reserve;              // executors that its batches leave to others
    Nanos gather_ns = 0;          // for which waiting for one more row may be worthwhile
    bool metered = false;         // in GroupTable::metered(): its rate is not idle
    bool stale = false;           // in ModelState::stale: must be planned anew
    std::uint64_t rows_planned = 0;
    Nanos planned_ns = 0;  // the bound of a batch with them, as far as they fit
    float row_size = 1;    // of the request that came last
    // What admission foresees with (admission/feasibility.cc).
    std::array<std::uint32_t, Backlog::kLevels> level_rows{};    // of `rows`
    std::array<std::uint32_t, Backlog::kLevels> endless_rows{};  // of these: without a deadline
    Nanos work_ns = 0;                                           // as counted in the backlog
    Nanos planned_at = std::numeric_limits<Nanos>::min();

    // By metered level, what the load of it and those above asks for; 0: as the whole load.
    std::array<std::uint32_t, kMeteredLevels> level_targets{};

    const QueueKey& head() const { return order.front(); }
    void count_rows(const RequestRecord& request) {
        const std::uint32_t added = request.rows_left();
        rows += added;
        level_rows[request.backlog.level] += added;
        if (request.deadline == kNever) endless_rows[request.backlog.level] += added;
    }
    // Those that a batch must be started for. What has no objective, or no deadline, fills the room
    // that they leave in it.
    std::uint64_t rows_due() const {
        if ((head().level & kBestEffortBit << 1) != 0) return rows;
        std::uint64_t fill = level_rows.back();
        for (std::size_t l = 0; l + 1 < endless_rows.size(); ++l) fill += endless_rows[l];
        return rows - fill;
    }
    std::uint32_t target_of(std::uint32_t queue_level) const {
        const std::size_t level = metered_level(queue_level);
        if (level >= kMeteredLevels || level_targets[level] == 0) return target;
        return std::min(level_targets[level], target);
    }
};

struct Pool {
    struct Ready {
        QueueKey key;
        std::uint32_t group;
        bool operator<(const Ready& other) const { return key < other.key; }
    };

    std::set<Ready> ready;
    std::set<std::pair<Nanos, std::uint32_t>> waiting;          // (ready_at, group)
    std::set<std::pair<std::uint64_t, std::uint32_t>> retries;  // (retry sequence, batch)
    // Since when no placement could take its work; kNever: one can. The smallest value: there never
    // was one.
    Nanos unserved_since = std::numeric_limits<Nanos>::min();
    // Of a pool with shared executors: where it offers its work, and as what.
    std::uint32_t domain = kNoSlot;
    bool offered = false;
    QueueKey offer_key;
    std::uint32_t offer_reserve = 0;
    Nanos wait_listed = kNever;  // the first of waiting, as the domain knows it
    bool retry_waits = false;    // while executors are given out: none takes the first of retries

    bool offers_retry() const { return !retries.empty() && !retry_waits; }
    // As the domain is given up together with all that it knows.
    void leave_domain() {
        offered = false;
        wait_listed = kNever;
    }
    bool has_work() const { return !ready.empty() || !waiting.empty() || !retries.empty(); }
};

// The groups of a model by their key. Empty ones are kept for a while, because a popular signature
// empties its queue with every batch.
class GroupTable {
  public:
    static constexpr std::size_t kEmptyGroupsMax = 64;
    // Every tick looks at all that are metered; clients choose how many groups there are.
    static constexpr std::size_t kMeteredGroupsMax = 1024;

    // The group of a key, made when there is none.
    std::uint32_t get(GroupKey key);
    // kNoSlot when there is none.
    std::uint32_t find(const GroupKey& key) const;
    // To be called when a group became empty.
    void release(std::uint32_t group);

    // To be called before arrivals of a group are counted. False: they are not to be counted, as
    // many others are already.
    bool meter(std::uint32_t group);
    // Once its rate is idle again.
    void unmeter(std::uint32_t group);
    // In ascending order; valid until the next call of meter().
    const std::vector<std::uint32_t>& metered();

    Group& operator[](std::uint32_t group) { return groups_[group]; }
    const Group& operator[](std::uint32_t group) const { return groups_[group]; }
    std::uint32_t slots() const { return static_cast<std::uint32_t>(groups_.size()); }
    // Those that became empty, the first one first; also ones filled since, and some repeatedly.
    std::vector<std::uint32_t> emptied() const { return {emptied_.begin(), emptied_.end()}; }
    void set_emptied(const std::vector<std::uint32_t>& groups) {
        emptied_.assign(groups.begin(), groups.end());
    }
    std::size_t size() const { return by_key_.size(); }

  private:
    std::deque<Group> groups_;
    std::vector<std::uint32_t> free_;
    std::deque<std::uint32_t> emptied_;   // candidates for removal, oldest first
    std::vector<std::uint32_t> metered_;  // also ones that are not any more, and repeatedly
    std::size_t metered_count_ = 0;
    bool metered_changed_ = false;
    std::unordered_map<GroupKey, std::uint32_t, GroupKeyHash> by_key_;  // looked up, never walked
    std::uint32_t last_ = kNoSlot;                                      // the group of last_key_
    GroupKey last_key_;
};

}  // namespace infersched::engine
