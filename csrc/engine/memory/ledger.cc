#include "engine/memory/ledger.h"

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

std::size_t position(const PlacementState& placement, std::uint32_t device) {
    const auto& all = placement.devices;
    return static_cast<std::size_t>(std::find(all.begin(), all.end(), device) - all.begin());
}

// As many on every device, unless more are told to be on one.
void set_instances(PlacementState& placement, std::size_t devices) {
    const auto count = static_cast<std::uint32_t>(std::max<std::size_t>(devices, 1));
    const std::uint32_t even = (placement.instances + count - 1) / count;
    const std::uint32_t told = placement.device_instances;
    placement.memory.set_instances(placement.instances, told > 0 ? told : even);
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
    set_instances(placement, known_devices.size());
    touch();
    update_held(placement);
    if (known_devices == placement.devices) return;
    forget(placement);
    placement.devices = known_devices;
    placement.taking.assign(known_devices.size(), {});
    placement.memory.set_devices(known_devices.size());
    update_held(placement);
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

void MemoryLedger::show(std::uint32_t index, PlacementState& placement) {
    Device& device = devices_[index];
    MemoryTaking& taking = placement.taking[position(placement, index)];
    const bool settled = taking.settled();
    if (settled) return;
    // Nothing more will be learned of them where there are no readings.
    taking.show(device.shown_until());
    device.settle(settled, taking.settled());
    count_taken(placement);
}

void MemoryLedger::learn(std::uint32_t index, PlacementState& placement) {
    const Device& device = devices_[index];
    if (!device.shows()) return;
    MemoryNeed& need = placement.memory;
    // Which one has run out is not known: it is taken to be the one with the least.
    double free_bytes = kNoSizeLimit;
    for (const std::uint32_t each : placement.devices) {
        if (!devices_[each].shows()) continue;
        free_bytes = std::min(free_bytes, static_cast<double>(devices_[each].memory.free_bytes));
    }
    need.note_free(free_bytes, static_cast<double>(device.memory.headroom_bytes));
    if (need.away(device.memory.measured_at)) return;
    const std::size_t at = position(placement, index);
    need.look_back(at, device.used_bytes(), device.settled());
    if (device.settled()) {
        const auto own_bytes = static_cast<double>(device.memory.own_bytes);
        need.learn(at, {device.used_bytes(), device.tells_own(), own_bytes, device.takers,
                        placement.taking[at].take_shown()});
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
    for (std::size_t i = 0; i < placement.devices.size(); ++i) {
        const Device& device = devices_[placement.devices[i]];
        // Where there never was a source, nothing is held back.
        if (!device.seen) continue;
        if (!device.memory.known) {
            merged = std::min(merged, need.lost_size());
            if (need.confirmed()) single = std::min(single, need.lost_size());
            continue;
        }
        if (need.confirmed()) {
            const MemoryTaking& taking = placement.taking[i];
            const double bytes = device.available_bytes();
            single = std::min(single, taking.size_within(bytes, need, need.mark_on(i)));
        }
        const double next = need.next_size(i, device.shown_until(), row_size);
        merged = std::min(merged, next_padded(policy, need.largest(), next, row_size));
    }
    single = std::max(single, row_size);
    return MemoryLimit(single, std::clamp(merged, row_size, single), row_size);
}

void MemoryLedger::grow(BatchRecord& batch, PlacementState& placement, double size) {
    batch.grows = true;
    batch.growth = {placement.memory.mark(), size};
    placement.growing.push_back(batch.growth);
    for (const std::uint32_t device : placement.devices) at(device).note_sent();
    count_taken(placement);
    touch();
}

void MemoryLedger::settle(BatchRecord& batch, PlacementState& placement, Nanos now) {
    if (!batch.grows) return;
    batch.grows = false;
    placement.memory.count_take();
    const auto mine = [&](const MemoryGrowth& growth) {
        return growth.from == batch.growth.from && growth.to == batch.growth.to;
    };
    std::vector<MemoryGrowth>& growing = placement.growing;
    const auto found = std::find_if(growing.begin(), growing.end(), mine);
    if (found != growing.end()) growing.erase(found);
    for (std::size_t i = 0; i < placement.devices.size(); ++i) {
        Device& device = at(placement.devices[i]);
        MemoryTaking& taking = placement.taking[i];
        device.note_ended();
        if (!device.shows()) continue;
        const bool settled = taking.settled();
        taking.end(batch.growth, placement.memory.on_device(), now);
        device.settle(settled, taking.settled());
    }
    count_taken(placement);
    if (!placement.configured) leave(placement);
    touch();
}

// After every change of what it depends on.
void MemoryLedger::count_taken(PlacementState& placement) {
    for (std::size_t i = 0; i < placement.devices.size(); ++i) {
        MemoryTaking& taking = placement.taking[i];
        const std::uint64_t before = taking.bytes();
        taking.count(placement.growing, placement.memory, placement.memory.matched_on(i));
        if (taking.bytes() == before) continue;
        at(placement.devices[i]).reserve(before, taking.bytes());
        touch();
    }
}

// What has ended at a placement that is no more counts by the device.
void MemoryLedger::leave(PlacementState& placement) {
    for (std::size_t i = 0; i < placement.devices.size(); ++i) {
        Device& device = at(placement.devices[i]);
        MemoryTaking& taking = placement.taking[i];
        if (taking.settled()) continue;
        const Nanos since = taking.last_end();
        const std::uint64_t before = taking.bytes();
        taking.show(kNever);
        taking.count(placement.growing, placement.memory, placement.memory.matched_on(i));
        device.settle(false, true);
        device.reserve(before, taking.bytes());
        device.leave(before - std::min(before, taking.bytes()), since);
    }
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
    count_taken(placement);
    const auto held = static_cast<std::uint64_t>(std::ceil(placement.memory.held_bytes()));
    if (held == placement.held_bytes) return;
    for (const std::uint32_t device : placement.devices) {
        at(device).hold(placement.held_bytes, held);
    }
    placement.held_bytes = held;
    touch();
}

void MemoryLedger::forget(PlacementState& placement) {
    leave(placement);
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
