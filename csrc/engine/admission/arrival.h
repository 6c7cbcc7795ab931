// A request at its arrival: as admission sees it, and what it foresees of it.
#pragma once

#include <cstdint>

#include "base/time.h"
#include "engine/engine.h"
#include "engine/queues/queue.h"

namespace infersched::engine {

struct Arrival {
    Nanos at = 0;
    Nanos deadline = kNever;
    std::uint32_t level = 1;        // to be served at
    std::uint32_t asked_level = 1;  // of its priority
    // By which a queue is full, and what is refused counts: of Triton's where it has them.
    std::uint32_t queue_level = 1;
    std::uint32_t tenant = 0;
    bool over_share = false;
    GroupKey key;
    std::uint32_t group = kNoSlot;  // kNoSlot: there is none yet
    Nanos share_ns = 0;
};

struct Forecast {
    Reason reason = Reason::kNone;
    Nanos predicted_ns = 0;
    Nanos budget_ns = 0;
    Nanos retry_after_ns = 0;
    bool kept = false;  // let in against what is foreseen, to learn whether that is so
};

}  // namespace infersched::engine
