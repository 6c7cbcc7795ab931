// Batches that run beyond their deadline at the backend, to show how long they take.
#pragma once

#include <cstdint>

#include "base/time.h"
#include "engine/execution/placements.h"
#include "engine/model_state.h"

namespace infersched::engine {

// Until when a batch of so many rows may run: its deadline, or longer where it is not expected by
// then, or is the next one after another was given up there. Otherwise nobody would ever know how
// long it takes, nor that an objective cannot be met. Its members are answered at their deadlines.
// A backend that hangs is waited for four times as long as the deadline leaves, or a second.
Nanos runs_on_until(const ModelState& model, const PlacementState& placement, std::uint32_t rows,
                    Nanos deadline, Nanos now);

}  // namespace infersched::engine
