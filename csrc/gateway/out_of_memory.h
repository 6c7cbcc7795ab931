// Whether a backend's error says that its device ran out of memory.
#pragma once

#include "base/status.h"

namespace infersched::gateway {

// Frameworks say it in the text only; Triton passes it on as INTERNAL, mostly.
bool says_out_of_memory(const Status& status);

}  // namespace infersched::gateway
