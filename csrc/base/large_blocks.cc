#include "base/large_blocks.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace infersched {

namespace {

// Messages of about the same size find each other's blocks.
constexpr std::size_t kStepBytes = 64u << 10;
// A block serves what needs a part of this of it at least.
constexpr std::size_t kLargerMax = 2;

std::size_t rounded(std::size_t size) {
    return size > SIZE_MAX - kStepBytes ? size : (size + kStepBytes - 1) / kStepBytes * kStepBytes;
}

class KeptBlocks {
  public:
    // The block that was freed last of those that fit: its memory is the warmest.
    Block take(std::size_t size) {
        for (std::size_t i = blocks_.size(); i-- > 0;) {
            const Block block = blocks_[i];
            if (block.capacity < size || block.capacity / kLargerMax > size) continue;
            blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
            bytes_ -= block.capacity;
            return block;
        }
        return {};
    }

    bool keep([[maybe_unused]] const Block& block) {
#if defined(__SANITIZE_ADDRESS__)
        return false;  // so that every wrong access is seen
#else
        if (block.capacity > kKeptBlockBytesMax - bytes_) return false;
        blocks_.push_back(block);
        bytes_ += block.capacity;
        return true;
#endif
    }

    std::size_t bytes() const { return bytes_; }

  private:
    std::vector<Block> blocks_;  // at most kKeptBlockBytesMax / kLargeBlockBytes
    std::size_t bytes_ = 0;
};

// Never destroyed: buffers of a thread may outlive its thread-local objects.
KeptBlocks& kept() {
    thread_local auto* blocks = new KeptBlocks();
    return *blocks;
}

}  // namespace

Block take_block(std::size_t size, std::size_t expected) {
    Block block = kept().take(std::max(expected, size));
    if (block.data == nullptr && expected > size) block = kept().take(size);
    if (block.data != nullptr) return block;
    const std::size_t capacity = rounded(size);
    return {std::malloc(capacity), capacity};
}

Block grow_block(const Block& block, std::size_t size) {
    const std::size_t capacity = rounded(size);
    // realloc moves blocks of their own mapping by remapping pages, without a copy.
    return {std::realloc(block.data, capacity), capacity};
}

void give_back_block(const Block& block) {
    if (block.capacity < kLargeBlockBytes || !kept().keep(block)) std::free(block.data);
}

std::size_t kept_block_bytes() { return kept().bytes(); }

}  // namespace infersched
