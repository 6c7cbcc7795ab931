// How a message says that a tensor lies in shared memory.
#pragma once

#include <string>
#include <vector>

#include "kserve/shared_tensors.h"

namespace infersched::kserve {

// Empty where a tensor is not in the region; a list may be shorter than the tensors are many.
struct Places {
    std::vector<std::string> inputs;   // the parameters of an input
    std::vector<std::string> outputs;  // by output of the model: the whole field that asks for it
};

Places make_places(const SharedTensors& shared, const std::vector<std::string>& output_names);

}  // namespace infersched::kserve
