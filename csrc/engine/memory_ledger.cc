#include "engine/memory_ledger.h"

#include <algorithm>
#include <cmath>

#include "engine/archive.h"

namespace infersched::engine {
namespace {

// A size that follows one that is proven: where batches are padded, the next of their sizes.
double next_padded(const ModelPolicy& policy, double proven, double next, double row_size) {
    if (next <= proven) return next;
    for (const std::uint32_t rows : policy.mandatory_rows) {
        const double size = rows * row_size;
        if (size > proven) return std::max(size, next);
    }
    return next;
}

}  // namespace

Device& MemoryLedger::at(std::uint32_t index) {
    if (index >= devices_.size()) devices_.resize(index + 1);
    return devices_[index];
}

std::vector<std::uint32_t> MemoryLedger::known(std::vector<std::uint32_t> devices) {
    std::sort(devices.begin(), devices.end());
    devices.erase(std::unique(devices.begin(), devices.end()), devices.end());
    const auto beyond = [](std::uint32_t device) { return device >= kDevicesMax; };
    devices.erase(std::remove_if(devices.begin(), devices.end(), beyond), devices.end());
    return devices;
}

void MemoryLedger::place(std::uint32_t model, PlacementState& placement,
                         const std::vector<std::uint32_t>& known_devices) {
    placement.memory.set_instances(placement.instances);
    touch();
    update_held(placement);
    if (known_devices == placement.devices) return;
    forget(placement);
    placement.devices = known_devices;
    for (const std::uint32_t device : placement.devices) at(device).models.insert(model);
}

void MemoryLedger::list(std::uint32_t model, const std::vector<PlacementState>& placements) {
    for (std::uint32_t index = 0; index < devices_.size(); ++index) {
        const auto there = [=](const PlacementState& p) {
            return std::find(p.devices.begin(), p.devices.end(), index) != p.devices.end();
        };
        if (std::none_of(placements.begin(), placements.end(), there)) {
            devices_[index].models.erase(model);
        }
    }
}

bool MemoryLedger::read(std::uint32_t index, const DeviceMemory& reading) {
    if (index >= kDevicesMax) return false;
    at(index).read(reading);
    touch();
    return true;
}

void MemoryLedger::learn(std::uint32_t index, PlacementState& placement) {
    const Device& device = devices_[index];
    if (!device.memory.known || device.memory.fixed) return;
    const auto free_bytes = static_cast<double>(device.memory.free_bytes);
    placement.memory.note_free(free_bytes, static_cast<double>(device.memory.headroom_bytes));
    if (placement.memory.away(device.memory.measured_at)) return;
    // Of several devices it is not known which one has taken how much.
    const bool measures = device.settled() && placement.devices.size() == 1;
    placement.memory.look_back(device.used_bytes(), measures);
    if (measures) {
        const std::uint64_t foreign = device.takers - placement.memory.takes();
        placement.memory.measure(device.used_bytes(), foreign);
        if (device.tells_own()) {
            placement.memory.measure_own(static_cast<double>(device.memory.own_bytes), foreign);
        }
    }
    update_held(placement);
}

const MemoryLimit& MemoryLedger::limit(const ModelPolicy& policy, const PlacementState& placement,
                                       double row_size) const {
    if (placement.memory_stamp != stamp_ || placement.memory_limit.row_size != row_size) {
        placement.memory_limit = computed(policy, placement, row_size);
        placement.memory_stamp = stamp_;
    }
    return placement.memory_limit;
}

MemoryLimit MemoryLedger::computed(const ModelPolicy& policy, const PlacementState& placement,
                                   double row_size) const {
    const MemoryNeed& need = placement.memory;
    double single = need.cap();
    double merged = kNoSizeLimit;
    for (const std::uint32_t index : placement.devices) {
        const Device& device = devices_[index];
        // Where there never was a source, nothing is held back.
        if (!device.seen) continue;
        if (!device.memory.known) {
            merged = std::min(merged, need.lost_size());
            if (need.confirmed()) single = std::min(single, need.lost_size());
            continue;
        }
        if (need.confirmed()) {
            single = std::min(single, need.size_within(device.available_bytes()));
        }
        const bool shows = !device.memory.fixed;
        const Nanos measured_at = shows ? device.memory.measured_at : kNever;
        const double next = need.next_size(measured_at, row_size);
        merged = std::min(merged, next_padded(policy, need.largest(), next, row_size));
    }
    single = std::max(single, row_size);
    return MemoryLimit(single, std::clamp(merged, row_size, single), row_size);
}

bool MemoryLedger::reserve(BatchRecord& batch, PlacementState& placement, double size) {
    const MemoryNeed& need = placement.memory;
    if (placement.devices.empty() || size <= need.mark()) return false;
    double mark = need.mark();
    // The one instance there is will have grown for those before it.
    if (placement.instances == 1) mark = std::max(mark, placement.growing_size);
    const double added = need.added_bytes(size, mark);
    batch.added_bytes = static_cast<std::uint64_t>(std::ceil(added));
    batch.grows = true;
    for (const std::uint32_t device : placement.devices) at(device).reserve(batch.added_bytes);
    placement.growing_size = std::max(placement.growing_size, size);
    touch();
    return true;
}

void MemoryLedger::settle(BatchRecord& batch, PlacementState& placement, Nanos now) {
    if (!batch.grows) return;
    batch.grows = false;
    placement.memory.count_take();
    for (const std::uint32_t device : placement.devices) {
        at(device).settle(batch.added_bytes, now);
    }
    // Of the others that grow, the largest is not looked for: they count whole.
    placement.growing_size = 0;
    touch();
}

bool MemoryLedger::hold(PlacementState& placement, double size) {
    const auto fixed = [&](std::uint32_t device) { return at(device).memory.fixed; };
    const std::vector<std::uint32_t>& devices = placement.devices;
    if (std::none_of(devices.begin(), devices.end(), fixed)) return false;
    placement.memory.hold(size);
    update_held(placement);
    return true;
}

void MemoryLedger::update_held(PlacementState& placement) {
    if (placement.devices.empty()) return;
    const auto held = static_cast<std::uint64_t>(std::ceil(placement.memory.held_bytes()));
    if (held == placement.held_bytes) return;
    for (const std::uint32_t device : placement.devices) {
        at(device).hold(placement.held_bytes, held);
    }
    placement.held_bytes = held;
    touch();
}

void MemoryLedger::forget(PlacementState& placement) {
    placement.memory.forget_marks();
    update_held(placement);
}

void MemoryLedger::restore(std::uint32_t model, PlacementState& placement) {
    placement.memory_stamp = 0;
    placement.memory_limit = {};
    for (const std::uint32_t device : placement.devices) at(device).models.insert(model);
}

template <class Archive>
void MemoryLedger::archive(Archive& archive) {
    archive(stamp_);
    archive.vector_size(devices_, 32);
    if (!archive.require(devices_.size() <= kDevicesMax)) {
        devices_.clear();
        return;
    }
    for (Device& device : devices_) {
        device.archive(archive);
        if constexpr (Archive::kReads) device.models.clear();
    }
}

template void MemoryLedger::archive(ArchiveWriter&);
template void MemoryLedger::archive(ArchiveReader&);

}  // namespace infersched::engine
