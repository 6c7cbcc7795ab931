// The ledger of one device: what is free by the last reading, less what batches may have taken
// since.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "engine/memory/status.h"

namespace infersched::engine {

class Device {
  public:
    DeviceMemory memory;
    bool seen = false;               // a reading has come, once
    std::set<std::uint32_t> models;  // placed on it
    std::uint64_t takers = 0;        // batches that have taken memory, and loads

    std::uint64_t reserved_bytes() const { return reserved_bytes_; }
    // What frameworks keep of what batches took: no figure will ever show it where they are fixed.
    std::uint64_t held_bytes() const { return memory.fixed ? held_bytes_ : 0; }
    // What batches may take, and besides those that are there. May be negative.
    double unreserved_bytes() const;
    double available_bytes() const;
    // That, by the last figures that were new when they came: those that grow old before their
    // source is lost leave less and less.
    double last_bytes() const { return last_unreserved_ - static_cast<double>(reserved_bytes_); }
    double used_bytes() const {
        return static_cast<double>(memory.total_bytes) - static_cast<double>(memory.free_bytes);
    }
    // Whether the last reading tells what the servers' processes use.
    bool tells_own() const {
        return memory.own_measured_at != 0 && memory.own_measured_at >= memory.measured_at;
    }
    // Whether the last reading shows all that batches have taken.
    bool settled() const { return inflight_ == 0 && unsettled_ == 0 && left_.empty(); }
    // Whether a later one will.
    bool shows() const { return memory.known && !memory.fixed; }
    // Of placements that are no more; and how many batches have not ended.
    std::uint64_t left_bytes() const;
    std::uint64_t inflight() const { return inflight_; }
    std::uint32_t unsettled() const { return unsettled_; }

    // A batch that is larger than those before was sent; it has ended.
    void note_sent() { ++inflight_; }
    void note_ended() {
        --inflight_;
        ++takers;
    }
    // What the batches of a placement may have taken changes, and whether some have ended.
    void reserve(std::uint64_t before, std::uint64_t now) { reserved_bytes_ += now - before; }
    void settle(bool before, bool now) { unsettled_ += before - now; }
    // Of a placement that is no more: reserved until a reading is newer.
    void leave(std::uint64_t bytes, Nanos since);
    void read(const DeviceMemory& reading);
    // By now a reading shows what ended before.
    Nanos shown_until() const { return shows() ? memory.measured_at : kNever; }
    // The frameworks of a placement keep `now` bytes, instead of `before`.
    void hold(std::uint64_t before, std::uint64_t now) { held_bytes_ += now - before; }
    std::uint64_t kept_bytes() const { return held_bytes_; }

    template <class Archive>
    void archive(Archive& archive);

  private:
    struct Left {
        Nanos since = 0;
        std::uint64_t bytes = 0;
    };

    std::uint64_t reserved_bytes_ = 0;
    std::uint64_t held_bytes_ = 0;  // kept, by what is known of it
    std::uint64_t inflight_ = 0;    // batches that are larger than those before
    std::uint32_t unsettled_ = 0;   // placements some of which have ended since the last reading
    std::vector<Left> left_;
    double last_unreserved_ = 0;
};

}  // namespace infersched::engine
