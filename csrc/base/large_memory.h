// Memory for what grows without end: on huge pages where there is much of it.
//
// A walk through a million records meets another page with nearly every one of them, and on small
// pages looking up where each is costs as much as fetching it.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace infersched {

// Uninitialised; std::free() gives it back. Throws std::bad_alloc.
inline void* take_memory(std::size_t bytes, std::size_t alignment) {
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    // Less is not worth it that a whole huge page is cleared when its first byte is written.
    constexpr std::size_t kHugeFrom = 2 * kHugePage;
    const bool huge = bytes >= kHugeFrom;
    if (huge) alignment = std::max(alignment, kHugePage);
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    // Where the system has none to give, small ones are used.
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

}  // namespace infersched
