// Devices whose memory batches take: allocators that keep their largest batch, and another tenant.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "simulation/engine_settings.h"

namespace infersched::simulation {

class DeviceArenas {
  public:
    struct Rows {
        std::uint32_t count = 0;
        std::uint64_t bytes = 0;  // of each, as RequestClass::row_bytes
    };

    DeviceArenas(const EngineSettings& settings, const std::vector<ModelSetup>& models);

    bool empty() const { return devices_.empty(); }
    // A batch starts in an instance of the model. False: its device has no room for it.
    bool take(std::uint32_t model, std::uint32_t backend, std::uint32_t instance, Rows rows,
              Nanos now);
    // Whether a request of these rows would have found room alone, in every instance there, ever
    // since: nothing was freed meanwhile.
    bool fits(std::uint32_t model, Rows rows, Nanos since, Nanos now);
    // The backend is started anew.
    void forget(std::uint32_t backend, Nanos now);
    std::uint64_t free_bytes(std::uint32_t device, Nanos now);

  private:
    struct Arena {
        std::uint32_t device = 0;
        std::uint64_t bytes = 0;
    };
    struct Placed {
        std::uint32_t model = 0;
        std::uint32_t backend = 0;
        std::vector<Arena> arenas;  // by instance
    };
    struct State {
        std::uint64_t arenas_bytes = 0;
        std::uint64_t tenant_bytes = 0;
        std::size_t next = 0;  // of the tenant's changes
        Nanos freed_at = 0;
    };

    void bring_up(std::uint32_t device, Nanos now);
    std::uint64_t need(std::uint32_t model, Rows rows) const;

    const EngineSettings& settings_;
    const std::vector<ModelSetup>& models_;
    std::vector<State> devices_;
    std::vector<Placed> placed_;
};

}  // namespace infersched::simulation
