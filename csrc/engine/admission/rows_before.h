// Rows of a group that go before a request, for who foresees when that one is done.
#pragma once

#include <cstdint>

#include "engine/model_state.h"
#include "engine/queues/queue.h"
#include "engine/records.h"

namespace infersched::engine {

// Of a group that is not empty, before a request of this queue level with a deadline. Within its
// own level, deadlines are taken to be spread evenly up to the last one; what has none is behind
// them.
std::uint32_t rows_before(const Requests& requests, const ModelState& model, const Group& group,
                          std::uint32_t queue_level, Nanos deadline, Nanos now);

}  // namespace infersched::engine
