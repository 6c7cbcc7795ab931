// When a request that takes too long by itself is let in all the same, by its size: it may only
// have been seen in bad times, and what others run says little of its size.
//
// Every size has its turn, those between two powers of two together: a small one that no backend
// does in time must not take the turns of a large one that would be.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "base/time.h"

namespace infersched::engine {

class SizeProbes {
  public:
    SizeProbes() { due_at_.fill(kNever); }

    // Whether one that is refused otherwise goes in, `apart` after the last one. Where an executor
    // is idle, it takes nobody's time; where none ever is, it goes in after twice as long.
    bool takes(std::uint32_t rows, Nanos apart, bool idle, Nanos now) {
        Nanos& due_at = due_at_[place(rows)];
        const Nanos next = add_saturating(now, apart);
        due_at = std::min(due_at, next);
        if (now < (idle ? due_at : add_saturating(due_at, apart))) return false;
        due_at = next;
        return true;
    }
    // A batch of so many rows took far less than it was thought to: the next one of its size, or of
    // a smaller one, goes in at once if those were refused.
    void refuted(std::uint32_t rows) {
        for (std::size_t i = 0; i <= place(rows); ++i) {
            if (due_at_[i] != kNever) due_at_[i] = std::numeric_limits<Nanos>::min();
        }
    }

    template <class Archive>
    void archive(Archive& archive) {
        for (Nanos& due_at : due_at_) archive(due_at);
    }

  private:
    // The last one stands for all above it.
    static constexpr std::size_t kPlaces = 16;

    static std::size_t place(std::uint32_t rows) {
        std::size_t bits = 0;
        for (std::uint32_t left = rows > 0 ? rows - 1 : 0; left > 0; left >>= 1) ++bits;
        return std::min(bits, kPlaces - 1);
    }

    std::array<Nanos, kPlaces> due_at_;  // kNever: none was refused
};

}  // namespace infersched::engine
