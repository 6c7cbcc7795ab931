#include "base/shared_blocks.h"

#include <fcntl.h>

#include <algorithm>
#include <cassert>
#include <iterator>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace infersched {

namespace {

// Pages are asked for in runs of this.
constexpr std::size_t kBackBytes = 1u << 20;

std::size_t rounded_up(std::size_t size, std::size_t step) {
    return (size + step - 1) / step * step;
}

// So that an access to a free block is seen.
void forbid([[maybe_unused]] std::uint8_t* data, [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(data, size);
#endif
}

void allow([[maybe_unused]] std::uint8_t* data, [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(data, size);
#endif
}

}  // namespace

void SharedBlocks::adopt(std::uint8_t* memory, std::size_t size, int fd) {
    assert(memory_ == nullptr);
    memory_ = memory;
    size_ = size / kStepBytes * kStepBytes;
    fd_ = fd;
    backed_ = fd < 0 ? size_ : 0;
    if (size_ > 0) free_.push_back({0, size_});
    forbid(memory_, size_);
}

Block SharedBlocks::take(std::size_t size) {
    if (size == 0 || size > size_ / kPartOfOneBlock) return {};
    const std::size_t wanted = rounded_up(size, kStepBytes);
    const auto fits = [wanted](const Extent& extent) {
        return extent.end - extent.begin >= wanted;
    };
    auto place = std::find_if(free_.begin(), free_.end(), fits);
    if (place != free_.end() && place->begin + wanted > backed_ && !back(place->begin + wanted)) {
        cut_off_unbacked();
        place = std::find_if(free_.begin(), free_.end(), fits);
    }
    if (place == free_.end()) return {};
    std::uint8_t* const data = memory_ + place->begin;
    place->begin += wanted;
    if (place->begin == place->end) free_.erase(place);
    used_ += wanted;
    allow(data, wanted);
    return {data, wanted};
}

void SharedBlocks::give_back(const Block& block) {
    const std::size_t begin = offset_of(static_cast<std::uint8_t*>(block.data));
    const std::size_t end = begin + block.capacity;
    used_ -= block.capacity;
    forbid(memory_ + begin, block.capacity);
    auto after = std::find_if(free_.begin(), free_.end(),
                              [end](const Extent& extent) { return extent.begin >= end; });
    const bool joins_after = after != free_.end() && after->begin == end;
    const bool joins_before = after != free_.begin() && std::prev(after)->end == begin;
    if (joins_before && joins_after) {
        std::prev(after)->end = after->end;
        free_.erase(after);
    } else if (joins_before) {
        std::prev(after)->end = end;
    } else if (joins_after) {
        after->begin = begin;
    } else {
        free_.insert(after, {begin, end});
    }
}

// Pages for everything up to `end`; false: the system has none.
bool SharedBlocks::back(std::size_t end) {
    const std::size_t generous = std::min(rounded_up(end, kBackBytes), size_);
    const auto from = static_cast<off_t>(backed_);
    for (const std::size_t upto : {generous, end}) {
        if (posix_fallocate(fd_, from, static_cast<off_t>(upto - backed_)) != 0) continue;
        backed_ = upto;
        return true;
    }
    return false;
}

// What has no pages is not asked for again. No block lies there.
void SharedBlocks::cut_off_unbacked() {
    backed_ = backed_ / kStepBytes * kStepBytes;
    while (!free_.empty() && free_.back().begin >= backed_) free_.pop_back();
    if (!free_.empty()) free_.back().end = std::min(free_.back().end, backed_);
}

// Never destroyed: buffers of a thread may outlive its thread-local objects.
SharedBlocks& shared_blocks() {
    thread_local auto* blocks = new SharedBlocks();
    return *blocks;
}

}  // namespace infersched
