// Memory of large buffers. Freed blocks are kept for reuse, within a bound: fresh memory costs a
// page fault for every 4 KiB, more than copying that much.
#pragma once

#include <cstddef>

namespace infersched {

// Smaller ones are malloc's own business.
inline constexpr std::size_t kLargeBlockBytes = 128u << 10;
// Free memory that a thread keeps at most.
inline constexpr std::size_t kKeptBlockBytesMax = 64u << 20;

struct Block {
    void* data = nullptr;
    std::size_t capacity = 0;
};

// At least `size` bytes; a kept block with room for `expected` (>= size) is taken before others.
// Null when memory is exhausted.
Block take_block(std::size_t size, std::size_t expected);
// The same bytes in at least `size`; null and `block` unchanged when memory is exhausted.
Block grow_block(const Block& block, std::size_t size);
void give_back_block(const Block& block);

// Bytes of the free blocks that this thread keeps.
std::size_t kept_block_bytes();

}  // namespace infersched
