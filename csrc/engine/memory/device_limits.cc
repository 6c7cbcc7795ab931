// What device memory allows the batches of a model, and what is learned of it.
#include <algorithm>
#include <cmath>

#include "engine/core.h"

namespace infersched::engine {
namespace {

// What nothing fits is tried all the same this often: the prediction may be wrong.
constexpr Nanos kProbeNs = kSecond;

bool on_device(const PlacementState& placement, std::uint32_t device) {
    const std::vector<std::uint32_t>& all = placement.devices;
    return std::find(all.begin(), all.end(), device) != all.end();
}

// What each instance where nothing has run may take by the last figures of a device: all of them
// together take no more than that. `instances`: further ones.
template <class Models>
double last_share(const Device& device, std::uint32_t index, const Models& models,
                  std::uint64_t instances) {
    for (const std::uint32_t named : device.models) {
        for (const PlacementState& p : models[named].placements) {
            if (!on_device(p, index) || p.memory.largest() > 0) continue;
            instances += p.memory.on_device();
        }
    }
    return device.last_bytes() / static_cast<double>(std::max<std::uint64_t>(instances, 1));
}

}  // namespace

// What is out there is not known on other devices than those it was sent to.
void Core::place_on_devices(std::uint32_t index, PlacementState& placement,
                            const std::vector<std::uint32_t>& devices, Nanos now) {
    if (devices.empty() && placement.devices.empty()) {
        placement.memory.set_instances(placement.instances, placement.instances);
        return;
    }
    const std::vector<std::uint32_t> wanted = MemoryLedger::known(devices);
    if (wanted != placement.devices) {
        for (const std::uint32_t slot : placement.out) {
            memory_.settle(batches_[slot], placement, now);
        }
    }
    const bool moved = wanted != placement.devices;
    memory_.place(index, placement, wanted);
    for (const std::uint32_t number : placement.devices) {
        const Device& device = *memory_.device(number);
        if (!moved || !device.seen || device.memory.known) continue;
        // It is not among the placements of its model yet.
        const std::uint32_t instances = placement.memory.on_device();
        placement.memory.note_lost(last_share(device, number, models_, instances));
    }
}

void Core::set_device(std::uint32_t index, const DeviceMemory& reading, Nanos) {
    const Device* before = memory_.device(index);
    const bool lost = before != nullptr && before->memory.known && !reading.known;
    if (!memory_.read(index, reading)) return;
    publish_device(index);
    const std::set<std::uint32_t>& named_there = memory_.device(index)->models;
    for (const std::uint32_t named : named_there) {
        for (PlacementState& p : models_[named].placements) {
            if (on_device(p, index)) memory_.show(index, p);
        }
    }
    const double share = lost ? last_share(*memory_.device(index), index, models_, 0) : 0;
    for (const std::uint32_t named : named_there) {
        ModelState& model = models_[named];
        for (PlacementState& p : model.placements) {
            if (!on_device(p, index)) continue;
            if (lost) p.memory.note_lost(share);
            memory_.learn(index, p);
        }
        if (model.waiting.total() > 0) mark_dirty(named);
    }
}

bool Core::prime_memory(std::uint32_t index, std::uint32_t device, double base_bytes,
                        double bytes_per_row, std::uint32_t rows_high, bool fixed) {
    if (index >= models_.size()) return false;
    bool primed = false;
    for (PlacementState& p : models_[index].placements) {
        if (!on_device(p, device)) continue;
        primed |= p.memory.prime(base_bytes, bytes_per_row, rows_high, fixed);
        memory_.update_held(p);
    }
    const Device* there = memory_.device(device);
    const bool lost = there != nullptr && there->seen && !there->memory.known;
    const double share = lost ? last_share(*there, device, models_, 0) : 0;
    for (PlacementState& p : models_[index].placements) {
        if (lost && on_device(p, device) && p.memory.largest() <= 0) p.memory.note_lost(share);
    }
    memory_.touch();
    return primed;
}

// What the placement of the most room allows: a batch goes there if it must.
const MemoryLimit& Core::memory_limit(const ModelState& model, double row_size) const {
    const bool known = model.memory_stamp == memory_.stamp();
    if (known && model.memory_limit.row_size == row_size) return model.memory_limit;
    double single = 0;
    double merged = 0;
    for (const PlacementState& p : model.placements) {
        if (!usable(p)) continue;
        const MemoryLimit& limit = memory_.limit(model.policy, p, row_size);
        single = std::max(single, limit.single);
        merged = std::max(merged, limit.merged);
    }
    const bool none = single == 0;
    model.memory_limit =
        MemoryLimit(none ? kNoSizeLimit : single, none ? kNoSizeLimit : merged, row_size);
    model.memory_stamp = memory_.stamp();
    return model.memory_limit;
}

RowsAllowed Core::rows_allowed(const ModelState& model, const Group& group) const {
    return memory_limit(model, group.row_size).rows;
}

RowsAllowed Core::rows_allowed(const ModelState& model, const Group& group,
                               const PlacementState& placement) const {
    return memory_.limit(model.policy, placement, group.row_size).rows;
}

// The largest batch that neither time nor memory speaks against.
std::uint32_t Core::rows_risked(const ModelState& model, const Group* group) const {
    const RowsAllowed allowed = memory_limit(model, group == nullptr ? 1 : group->row_size).rows;
    return std::min(model.rows_trusted, rows_limit(model.policy, allowed.merged));
}

double Core::size_sent(const ModelState& model, const BatchRecord& batch) const {
    return static_cast<double>(rows_sent(model, batch)) * batch.row_size;
}

// Whether a request that cannot be cut would find no room on any device, while nothing that is out
// there will be seen to have taken less.
bool Core::short_of_memory(ModelState& model, const Request& request, const Arrival& arrival,
                           float row_size, Admission& refused, Nanos now) {
    const double size = static_cast<double>(request.rows) * row_size;
    if (size <= memory_limit(model, row_size).single) return false;
    const PlacementState* best = nullptr;
    double most = 0;
    for (const PlacementState& p : model.placements) {
        if (!usable(p)) continue;
        double least = kNoSizeLimit;
        for (const std::uint32_t index : p.devices) {
            const Device& device = *memory_.device(index);
            if (!device.memory.known || !p.memory.confirmed()) return false;
            if (device.reserved_bytes() > 0) return false;
            least = std::min(least, std::max(device.available_bytes(), 0.0));
        }
        if (p.devices.empty()) return false;
        if (best != nullptr && least <= most) continue;
        best = &p;
        most = least;
    }
    if (best == nullptr) return false;
    if (model.memory_probe_at <= now) {
        model.memory_probe_at = now + kProbeNs;
        return false;
    }
    refused = refuse(model, arrival, request.model, Reason::kDeviceMemory);
    // What was compared. Where a smaller size has failed, more is needed than is predicted.
    const double added = best->memory.added_bytes(size, best->memory.mark());
    refused.free_bytes = static_cast<std::uint64_t>(most);
    refused.predicted_bytes = std::max(static_cast<std::uint64_t>(added), refused.free_bytes + 1);
    return true;
}

void Core::publish_device(std::uint32_t index) {
    const Device& device = *memory_.device(index);
    DeviceCounters& page = page_->devices[index];
    page.seen = device.seen;
    page.known = device.memory.known;
    page.free_bytes = device.memory.free_bytes;
    page.total_bytes = device.memory.total_bytes;
    page.headroom_bytes = device.memory.headroom_bytes;
    page.reserved_bytes = device.reserved_bytes() + device.held_bytes();
}

// A batch has ended well: what ran there at the same time, ran in other instances. It must have
// been there for a while, not just been sent for when this one's end is known.
void Core::prove_memory(ModelState& model, const BatchRecord& batch, Nanos now) {
    PlacementState& placement = *model.placement(batch.backend);
    MemoryNeed& need = placement.memory;
    const double size = size_sent(model, batch);
    if (need.count_good(size, batch.row_size, batch.cap_before)) {
        memory_.update_held(placement);
        memory_.touch();
    }
    if (placement.devices.empty() || size <= need.mark()) return;
    if (!placement.configured || memory_.hold(placement, size)) return;
    std::vector<double> running = {size};
    const Nanos ran_ns = now - batch.dispatched_at;
    for (const std::uint32_t slot : placement.out) {
        const BatchRecord& other = batches_[slot];
        if (&other == &batch || other.started_at == kNever) continue;
        if (now - other.started_at < ran_ns / 4) continue;
        running.push_back(size_sent(model, other));
    }
    need.raise(running, now);
    memory_.update_held(placement);
    memory_.touch();
}

MemoryStatus Core::memory_status(std::uint32_t index, std::uint32_t device) const {
    MemoryStatus status;
    if (index >= models_.size()) return status;
    const ModelState& model = models_[index];
    const std::uint32_t rows_max = rows_limit(model.policy);
    for (const PlacementState& p : model.placements) {
        if (!on_device(p, device)) continue;
        const MemoryNeed& need = p.memory;
        const double limit = memory_.limit(model.policy, p, 1).merged;
        status.out_of_memory += need.out_of_memory();
        if (status.known && need.samples() <= status.samples) continue;
        status.known = need.known();
        status.confirmed = need.samples() > 0 && need.confirmed();
        status.base_bytes = need.base_bytes();
        status.bytes_per_row = need.bytes_per_row();
        status.samples = need.samples();
        status.error = need.error();
        status.rows_high = whole_rows(need.mark());
        status.rows_limit = limit < rows_max ? whole_rows(limit) : 0;
        status.rows_cap = need.cap() < kNoSizeLimit ? whole_rows(need.cap()) : 0;
        const double added = need.added_bytes(std::min<double>(limit, rows_max), need.mark());
        status.added_bytes = static_cast<std::uint64_t>(added);
    }
    return status;
}

DeviceStatus Core::device_status(std::uint32_t index) const {
    const Device* device = memory_.device(index);
    if (device == nullptr) return {};
    return {device->seen, device->memory, device->reserved_bytes() + device->held_bytes()};
}

}  // namespace infersched::engine
