// What the control plane wants of the data plane, as plain data (scheduler.v1.Apply without
// protobuf).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "http2/session.h"
#include "kserve/schema.h"

namespace infersched::gateway {

enum class BackendState : std::uint8_t { kUnspecified, kServing, kDraining, kDown };

struct BackendConfig {
    std::uint32_t index = 0;
    std::string address;
    std::uint32_t connections = 1;
    BackendState state = BackendState::kServing;
    http2::Compression compression = http2::Compression::kNone;
    bool encrypted = false;
    // As which the backend has our shared blocks registered; empty: it has not.
    std::string shared_region;

    bool operator==(const BackendConfig& other) const {
        return index == other.index && address == other.address &&
               connections == other.connections && state == other.state &&
               compression == other.compression && encrypted == other.encrypted &&
               shared_region == other.shared_region;
    }
};

// What is known of a placement's latency before its first batch.
struct LatencyPrior {
    std::uint32_t backend = 0;
    std::uint32_t rows = 0;
    Nanos mean_ns = 0;
    std::uint64_t batches = 0;
};

// What is known of the device memory that batches take at a placement.
struct MemoryPrior {
    std::uint32_t backend = 0;
    double base_bytes = 0;
    double bytes_per_row = 0;
    std::uint32_t rows_high = 0;
    bool fixed = false;  // as configured: not learned

    bool operator==(const MemoryPrior& other) const {
        return backend == other.backend && base_bytes == other.base_bytes &&
               bytes_per_row == other.bytes_per_row && rows_high == other.rows_high &&
               fixed == other.fixed;
    }
};

struct ModelConfig {
    std::uint32_t index = 0;
    bool is_default_version = false;
    kserve::ModelSchema schema;
    engine::ModelPolicy policy;
    // Lower-case names of request headers that must agree for two requests to share a batch.
    std::vector<std::string> key_headers;
    std::vector<engine::Placement> placements;
    std::vector<LatencyPrior> priors;
    std::vector<MemoryPrior> memory_priors;
};

struct Tenant {
    std::string name;  // the value of Limits::tenant_key; empty: everybody else
    double weight = 1.0;

    bool operator==(const Tenant& other) const {
        return name == other.name && weight == other.weight;
    }
};

struct Limits {
    std::uint64_t message_bytes_max = 0x7fffffff;
    std::uint64_t host_bytes_max = 4ull << 30;
    std::uint32_t connections_max = 10'000;
    std::uint32_t streams_per_connection_max = 1000;
    std::vector<std::string> forward_metadata;
    http2::Compression response_compression = http2::Compression::kNone;
    std::string tenant_key;  // lower-case name of the request header; empty: no tenants
    std::vector<Tenant> tenants;
};

// A shared-memory region that a client registered: requests that name it go there only.
struct SharedMemoryRegion {
    std::string name;
    std::vector<std::uint32_t> backends;

    bool operator==(const SharedMemoryRegion& other) const {
        return name == other.name && backends == other.backends;
    }
};

// A model that some backend can load: requests for it wait while it is not loaded.
struct LoadableModel {
    std::string name;
    Nanos load_ns = 0;  // of a load asked for now; 0: not known
    // When the load under way should be done; 0: none is. With an error: when to try again.
    Nanos ready_at = 0;
    std::string error;             // why it cannot be loaded now; empty: it can
    std::uint64_t need_bytes = 0;  // 0: the error is not that no device has room for it
    std::uint64_t free_bytes = 0;
};

struct WantedState {
    std::uint64_t generation = 0;
    // A model of which nothing changed keeps its address from one Apply to the next.
    std::vector<std::shared_ptr<const ModelConfig>> models;
    std::vector<BackendConfig> backends;
    std::vector<SharedMemoryRegion> regions;
    std::vector<LoadableModel> loadable;
    Limits limits;
};

}  // namespace infersched::gateway
