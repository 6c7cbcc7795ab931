// What runs batches, and who competes for it.
//
// Placements of several models that name one executor group share an executor: one batch at a time.
// A pool of a model that has such placements offers its most urgent work to its domain, the set of
// executors that it may use; a free executor takes the most urgent offer of its domains, after what
// still waits for more rows and would be late behind that. Domains that have an executor in common
// make up a component, over which load is balanced. A model with executors of its own is a
// component for itself and offers nothing.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "engine/admission/backlog.h"
#include "engine/batching/blocking.h"
#include "engine/core_limits.h"
#include "engine/queues/aged_models.h"
#include "engine/queues/fair_shares.h"
#include "engine/queues/priority_cursor.h"
#include "engine/queues/queue.h"

namespace infersched::engine {

inline constexpr std::uint32_t kNoExecutor = 0xffffffff;

struct Executor {
    std::uint32_t group = 0;         // Placement::executor_group
    std::vector<std::uint32_t> out;  // batches of all models there; the first one runs
    std::uint32_t component = kNoSlot;
};

struct Offer {
    QueueKey key;
    std::uint32_t model = 0;
    std::uint32_t pin = kNoBackend;
    std::uint32_t reserve = 0;  // executors that its batch leaves to others
    bool operator<(const Offer& other) const {
        return reserve != other.reserve ? reserve < other.reserve : more_urgent_than(other);
    }
    bool more_urgent_than(const Offer& other) const {
        if (key < other.key || other.key < key) return key < other.key;
        return model != other.model ? model < other.model : pin < other.pin;
    }
};

// A batch that an executor is about to be given.
struct Upcoming {
    QueueKey key;
    Nanos free_at = 0;                       // when one is free behind it
    std::uint32_t barred_from = 0xffffffff;  // what leaves so many to others has no place
    Levels behind = 0;                       // Component::behind
};

// The first group of a pool that waits for more rows.
struct Wait {
    Nanos ready_at = kNever;
    std::uint32_t model = 0;
    std::uint32_t pin = kNoBackend;
    bool operator<(const Wait& other) const {
        if (ready_at != other.ready_at) return ready_at < other.ready_at;
        return model != other.model ? model < other.model : pin < other.pin;
    }
};

// Pools that may go to the same executors.
struct Domain {
    std::vector<std::uint32_t> executors;
    std::uint32_t component = kNoSlot;
    std::set<Offer> offers;  // those that leave as much to others are side by side
    std::set<Wait> waits;
};

struct Component {
    std::vector<std::uint32_t> domains;
    std::uint32_t slots = 0;             // batches that can run at once
    bool levels = false;                 // of different priority among its models
    bool dirty = false;                  // an executor became free, or an offer changed
    std::vector<std::uint32_t> metered;  // models whose arrivals are counted
    Nanos tick_at = kNever;              // next control tick; kNever: no traffic
    Backlog backlog;                     // what runs on its executors and waits for them
    Holds holds;                         // made anew with every control tick
    PriorityCursor cursor;
    // The lowest of those that miss their part, for what yields to it; 0: none does.
    std::uint32_t missing_level = 0;
    Levels behind = 0;  // levels of which less is in time than is to be, in one model at least
    FairShares shares;
    AgedModels aged;  // that wait for one of their requests to lead a batch
    std::uint32_t batches_since_aged = kBatchesPerAged;
    Nanos batch_ns = 0;  // moving average of the time that its batches take
    // Effort that close looks at what would be refused may take (admission/feasibility.cc).
    std::int64_t look_credit = 0;
};

}  // namespace infersched::engine
