#include "engine/execution/shared_places.h"

#include <algorithm>

#include "engine/memory/status.h"
#include "engine/model_state.h"

namespace infersched::engine {

std::uint32_t SharedPlaces::root(std::uint32_t device) const {
    while (device < roots_.size() && roots_[device] != device) device = roots_[device];
    return device;
}

void SharedPlaces::arrange(const std::deque<ModelState>& models) {
    roots_.resize(kDevicesMax);
    for (std::uint32_t device = 0; device < kDevicesMax; ++device) roots_[device] = device;
    for (const ModelState& model : models) {
        for (const PlacementState& p : model.placements) {
            for (const std::uint32_t device : p.devices) {
                const std::uint32_t one = root(p.devices.front());
                const std::uint32_t other = root(device);
                roots_[std::max(one, other)] = std::min(one, other);
            }
        }
    }
}

std::uint32_t SharedPlaces::place_of(const PlacementState& placement) const {
    if (placement.devices.empty()) return kDevicesMax + placement.backend;
    return root(placement.devices.front());
}

std::uint64_t SharedPlaces::ran_ns(std::uint32_t place, Nanos now) const {
    if (place >= places_.size()) return 0;
    const Place& at = places_[place];
    const auto elapsed = static_cast<std::uint64_t>(std::max<Nanos>(now - at.since, 0));
    return at.ran_ns + at.running * elapsed;
}

void SharedPlaces::start(std::uint32_t place, Nanos now) {
    if (place >= places_.size()) places_.resize(place + 1);
    places_[place].ran_ns = ran_ns(place, now);
    places_[place].since = now;
    ++places_[place].running;
}

void SharedPlaces::end(std::uint32_t place, Nanos now) {
    places_[place].ran_ns = ran_ns(place, now);
    places_[place].since = now;
    --places_[place].running;
}

}  // namespace infersched::engine
