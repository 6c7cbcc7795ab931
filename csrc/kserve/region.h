// Tensors in shared memory: the parameters of a tensor that name a region of it.
#pragma once

#include <string_view>

#include "base/status.h"
#include "kserve/request_scan.h"

namespace infersched::kserve {

// Where the parameters of a tensor say that it lies. Its place in the region is Triton's to judge:
// only Triton knows how large the region is.
struct RegionUse {
    bool used = false;
    std::string_view name;
};

// Whether any tensor of the request has one of the parameters of shared memory.
bool uses_shared_memory(const RequestScan& scan);

// Reads the parameters of the tensor `name`; refuses with Triton's words (2.51).
Status read_region(const RequestScan& scan, std::string_view name, Range parameters,
                   RegionUse* region);

}  // namespace infersched::kserve
