// An array that grows at its end without moving what it holds: no growth of a million records stops
// everything to copy them, and references into it stay valid.
//
// Its chunks double in size, so that an index tells its chunk by the place of its highest bit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "base/large_memory.h"

namespace infersched {

template <class T>
class StableArray {
  public:
    StableArray() = default;
    StableArray(const StableArray&) = delete;
    StableArray& operator=(const StableArray&) = delete;
    ~StableArray() {
        resize(0);
        for (T* chunk : chunks_) std::free(chunk);
    }

    T& operator[](std::uint32_t index) { return *find(index); }
    const T& operator[](std::uint32_t index) const { return *find(index); }
    std::uint32_t size() const { return size_; }

    T& push_back() {
        const std::uint32_t level = level_of(size_);
        T*& chunk = chunks_[level];
        if (chunk == nullptr) {
            const std::size_t bytes = (std::size_t{kFirst} << level) * sizeof(T);
            chunk = static_cast<T*>(take_memory(bytes, alignof(T)));
        }
        T* added = new (find(size_)) T();
        ++size_;
        return *added;
    }

    void resize(std::uint32_t size) {
        while (size_ > size) find(--size_)->~T();
        while (size_ < size) push_back();
    }

    // Calls visit(element) for every one in order.
    template <class Visit>
    void each(Visit&& visit) {
        for (std::uint32_t index = 0; index < size_; ++index) visit(*find(index));
    }

  private:
    static constexpr std::uint32_t kFirst = 16;  // elements of the first chunk
    static constexpr std::uint32_t kFirstBit = 4;
    static constexpr std::uint32_t kLevels = 32 - kFirstBit;
    static_assert(1u << kFirstBit == kFirst);

    static std::uint32_t level_of(std::uint32_t index) {
        return 31u - kFirstBit - static_cast<std::uint32_t>(__builtin_clz(index + kFirst));
    }
    T* find(std::uint32_t index) const {
        const std::uint32_t level = level_of(index);
        return chunks_[level] + (index + kFirst - (kFirst << level));
    }

    std::array<T*, kLevels> chunks_{};
    std::uint32_t size_ = 0;
};

}  // namespace infersched
