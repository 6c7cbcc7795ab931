// Device memory that batches take, and how large they may be for it.
//
// What a batch will add to its device is reserved when it is sent, and stays reserved after it has
// ended until a reading shows it. A limit is computed when it is asked for after something that it
// depends on has changed.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/memory/device_memory.h"
#include "engine/model_state.h"
#include "engine/records.h"

namespace infersched::engine {

class MemoryLedger {
  public:
    // As placements keep them: each once, in order, those that can be.
    static std::vector<std::uint32_t> known(std::vector<std::uint32_t> devices);
    // The devices of a placement are these from now on. What is out there is not known on them.
    void place(std::uint32_t model, PlacementState& placement,
               const std::vector<std::uint32_t>& known_devices);
    // After that, of all its placements.
    void list(std::uint32_t model, const std::vector<PlacementState>& placements);
    // False: the number is too large.
    bool read(std::uint32_t device, const DeviceMemory& reading);
    // Marks or caps of a placement have changed.
    void touch() { ++stamp_; }
    // Which placements can be used has changed.
    void placements_changed() { stamp_ += active(); }
    // Whether anything has ever set a limit.
    bool active() const { return stamp_ > 0; }

    // Of batches whose rows are of this size.
    const MemoryLimit& limit(const ModelPolicy& policy, const PlacementState& placement,
                             double row_size) const;
    // A batch of `size` is sent there. One that adds nothing leaves no trace; false then.
    bool reserve(BatchRecord& batch, PlacementState& placement, double size) {
        if (placement.devices.empty() || size <= placement.memory.mark()) return false;
        grow(batch, placement, size);
        return true;
    }
    void settle(BatchRecord& batch, PlacementState& placement, Nanos now);
    // One of this size has ended well where no reading will show what it took. False: one will.
    bool hold(PlacementState& placement, double size);
    // What is kept there may have changed: after every change of its need.
    void update_held(PlacementState& placement);
    // The model is no more there: nothing is kept.
    void forget(PlacementState& placement);
    // After a reading, of every placement on the device: it shows what batches have taken.
    void show(std::uint32_t device, PlacementState& placement);
    // And then: what it says about the need there.
    void learn(std::uint32_t device, PlacementState& placement);

    std::uint64_t stamp() const { return stamp_; }
    const Device* device(std::uint32_t index) const {
        return index < devices_.size() ? &devices_[index] : nullptr;
    }
    const std::deque<Device>& devices() const { return devices_; }

    // A placement that was loaded.
    void restore(std::uint32_t model, PlacementState& placement);
    template <class Archive>
    void archive(Archive& archive);

  private:
    MemoryLimit computed(const ModelPolicy& policy, const PlacementState& placement,
                         double row_size) const;
    Device& at(std::uint32_t index);
    void grow(BatchRecord& batch, PlacementState& placement, double size);
    void count_taken(PlacementState& placement);
    void leave(PlacementState& placement);

    std::deque<Device> devices_;
    std::uint64_t stamp_ = 0;  // changes with all that limits depend on
};

}  // namespace infersched::engine
