// Blocks of one segment of memory that other processes have mapped, too: what a message brings is
// then read by a backend of this host where it lies.
//
// The segment is bounded, and its pages are asked of the system before a block of them is given
// out: memory that is not there is a block that is not given, never a fault. The lowest place that
// fits is taken, so that few pages are used, and those again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/large_blocks.h"

namespace infersched {

// To this, a tensor in shared memory is aligned: backends use it in place.
inline constexpr std::size_t kSharedAlignBytes = 64;

class SharedBlocks {
  public:
    // Places in the segment are multiples of this.
    static constexpr std::size_t kStepBytes = 64u << 10;
    // One block takes this part of the segment at most: what one message claims leaves room.
    static constexpr std::size_t kPartOfOneBlock = 8;

    // From now on blocks lie in `memory`, `size` bytes mapped from `fd`, both there until the
    // process ends. Once only. Without an `fd` the pages are there already.
    void adopt(std::uint8_t* memory, std::size_t size, int fd);

    // At least `size` bytes; null when there is no room.
    Block take(std::size_t size);
    void give_back(const Block& block);

    bool contains(const std::uint8_t* data) const {
        return data >= memory_ && data < memory_ + size_;
    }
    std::uint64_t offset_of(const std::uint8_t* data) const {
        return static_cast<std::uint64_t>(data - memory_);
    }
    std::size_t used_bytes() const { return used_; }
    // With pages of their own; never more than the segment.
    std::size_t backed_bytes() const { return backed_; }

  private:
    struct Extent {
        std::size_t begin, end;
    };

    bool back(std::size_t end);
    void cut_off_unbacked();

    std::uint8_t* memory_ = nullptr;
    std::size_t size_ = 0;
    int fd_ = -1;
    std::size_t used_ = 0;
    std::size_t backed_ = 0;
    std::vector<Extent> free_;  // by place, never adjacent
};

// Those of this thread, with no memory until it adopts some.
SharedBlocks& shared_blocks();

}  // namespace infersched
