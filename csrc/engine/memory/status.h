// Device memory as it is told to the engine and shown by it.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace infersched::engine {

// Devices (GPUs, MIG instances) are numbered from 0.
inline constexpr std::uint32_t kDevicesMax = 64;

// A reading of a device. What happened after `measured_at`, on the clock of `now`, is not in it.
struct DeviceMemory {
    bool known = false;  // false: there is no source, or it is lost; learned caps are all there is
    std::uint64_t free_bytes = 0;
    std::uint64_t total_bytes = 0;
    std::uint64_t headroom_bytes = 0;  // of the free ones, not to be used
    Nanos measured_at = 0;
    // Nothing that batches do changes the figures, which are of a device without them.
    bool fixed = false;
    // What the servers' own processes use, and as of when; 0: that is not told. Other tenants do
    // not show in it. It may be older than the rest.
    std::uint64_t own_bytes = 0;
    Nanos own_measured_at = 0;
    // How many loads and unloads of models had begun or ended there by then, since some time.
    std::uint64_t loads = 0;
};

// What the batches of a model take on a device, at its placements there. A batch of b rows adds
// bytes_per_row * (b - rows_high), and base_bytes where none has run.
struct MemoryStatus {
    bool known = false;      // base_bytes and bytes_per_row are
    bool confirmed = false;  // by batches, well enough to be kept
    double base_bytes = 0;
    double bytes_per_row = 0;
    std::uint64_t samples = 0;        // from which they were learned
    double error = 0;                 // mean of |predicted / actual - 1| of what batches added
    std::uint32_t rows_high = 0;      // that every instance is known to have room for
    std::uint32_t rows_limit = 0;     // the largest batch now; 0: device memory sets no limit
    std::uint32_t rows_cap = 0;       // by out-of-memory replies; 0: none
    std::uint64_t added_bytes = 0;    // predicted for a batch of rows_limit, or of the largest one
    std::uint64_t out_of_memory = 0;  // replies
};

struct DeviceStatus {
    bool seen = false;  // a reading has come, ever
    DeviceMemory memory;
    std::uint64_t reserved_bytes = 0;  // of batches that a reading may not show yet
};

}  // namespace infersched::engine
