// Which part of its batches a model's bounds are to cover.
#pragma once

namespace infersched::engine {

struct ModelState;

// Whether the times of its batches differ so much that fewer may be better to cover than it is
// asked to: on a host that stalls, or that others use, too.
bool covers_wide(const ModelState& model);

}  // namespace infersched::engine
