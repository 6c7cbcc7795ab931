// How many batches run beside each other, of all models: at a place, whose batches may slow each
// other down.
//
// A place is the devices that some placement is on, with those that other placements share with it;
// of placements whose devices are not known, it is their backend.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "base/time.h"
#include "engine/execution/placements.h"

namespace infersched::engine {

struct ModelState;

class SharedPlaces {
  public:
    // After a change of the devices that placements are on. Batches that run stay where they are.
    void arrange(const std::deque<ModelState>& models);
    std::uint32_t place_of(const PlacementState& placement) const;

    void start(std::uint32_t place, Nanos now);
    void end(std::uint32_t place, Nanos now);
    std::uint32_t running(std::uint32_t place) const {
        return place < places_.size() ? places_[place].running : 0;
    }
    // The times of all that ran there, summed up; of use is the difference over a batch's life.
    std::uint64_t ran_ns(std::uint32_t place, Nanos now) const;

    template <class Archive>
    void archive(Archive& archive) {
        archive.vector_size(places_, 16);
        for (Place& place : places_) {
            archive(place.since);
            archive(place.ran_ns);
        }
        archive(roots_);
        for (std::uint32_t device = 0; device < roots_.size(); ++device) {
            archive.require(roots_[device] <= device);
        }
    }
    // Of loaded state: who runs follows from the batches.
    bool found_running(std::uint32_t place) {
        if (place >= places_.size()) return false;
        ++places_[place].running;
        return true;
    }

  private:
    struct Place {
        std::uint32_t running = 0;
        Nanos since = 0;           // they are so many
        std::uint64_t ran_ns = 0;  // until then
    };
    std::uint32_t root(std::uint32_t device) const;

    std::vector<Place> places_;         // of devices, behind them those of backends
    std::vector<std::uint32_t> roots_;  // by device: one of its place, in the end itself
};

}  // namespace infersched::engine
