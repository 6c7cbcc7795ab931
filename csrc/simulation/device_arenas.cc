#include "simulation/device_arenas.h"

#include <algorithm>

namespace infersched::simulation {

DeviceArenas::DeviceArenas(const EngineSettings& settings, const std::vector<ModelSetup>& models)
    : settings_(settings), models_(models), devices_(settings.devices.size()) {
    for (std::uint32_t m = 0; m < models.size(); ++m) {
        for (const engine::Placement& p : models[m].placements) {
            Placed placed{m, p.backend, {}};
            for (std::uint32_t i = 0; i < p.instances && !p.devices.empty(); ++i) {
                placed.arenas.push_back({p.devices[i % p.devices.size()], 0});
            }
            if (!placed.arenas.empty()) placed_.push_back(std::move(placed));
        }
    }
}

// The other tenant gets what is left of what it wants.
void DeviceArenas::bring_up(std::uint32_t device, Nanos now) {
    State& state = devices_[device];
    const DeviceSetup& setup = settings_.devices[device];
    for (; state.next < setup.tenant.size() && setup.tenant[state.next].from_ns <= now;
         ++state.next) {
        const std::uint64_t left = setup.total_bytes - state.arenas_bytes;
        const std::uint64_t bytes = std::min(setup.tenant[state.next].bytes, left);
        if (bytes < state.tenant_bytes) state.freed_at = setup.tenant[state.next].from_ns;
        state.tenant_bytes = bytes;
    }
}

std::uint64_t DeviceArenas::need(std::uint32_t model, Rows rows) const {
    const std::uint64_t of_row =
        models_[model].bytes_per_row * std::max<std::uint64_t>(rows.bytes, 1);
    return models_[model].base_bytes + of_row * rows.count;
}

std::uint64_t DeviceArenas::free_bytes(std::uint32_t device, Nanos now) {
    bring_up(device, now);
    const State& state = devices_[device];
    return settings_.devices[device].total_bytes - state.arenas_bytes - state.tenant_bytes;
}

bool DeviceArenas::take(std::uint32_t model, std::uint32_t backend, std::uint32_t instance,
                        Rows rows, Nanos now) {
    for (Placed& placed : placed_) {
        if (placed.model != model || placed.backend != backend) continue;
        Arena& arena = placed.arenas[instance % placed.arenas.size()];
        const std::uint64_t wanted = need(model, rows);
        if (wanted <= arena.bytes) return true;
        if (wanted - arena.bytes > free_bytes(arena.device, now)) return false;
        devices_[arena.device].arenas_bytes += wanted - arena.bytes;
        arena.bytes = wanted;
        return true;
    }
    return true;
}

bool DeviceArenas::fits(std::uint32_t model, Rows rows, Nanos since, Nanos now) {
    for (Placed& placed : placed_) {
        if (placed.model != model) continue;
        for (const Arena& arena : placed.arenas) {
            const std::uint64_t wanted = need(model, rows);
            const std::uint64_t added = wanted - std::min(wanted, arena.bytes);
            if (added > free_bytes(arena.device, now)) return false;
            if (devices_[arena.device].freed_at > since) return false;
        }
    }
    return true;
}

void DeviceArenas::forget(std::uint32_t backend, Nanos now) {
    for (Placed& placed : placed_) {
        if (placed.backend != backend) continue;
        for (Arena& arena : placed.arenas) {
            devices_[arena.device].arenas_bytes -= arena.bytes;
            if (arena.bytes > 0) devices_[arena.device].freed_at = now;
            arena.bytes = 0;
        }
    }
}

}  // namespace infersched::simulation
