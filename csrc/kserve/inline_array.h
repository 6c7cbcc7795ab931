// A growable array of plain values whose first N live inside it. Clearing keeps the memory, so
// objects that are used again stop allocating.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace infersched::kserve {

template <typename T, std::uint32_t N>
class InlineArray {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    InlineArray() = default;
    InlineArray(const InlineArray&) = delete;
    InlineArray& operator=(const InlineArray&) = delete;

    std::uint32_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T* begin() { return data_; }
    T* end() { return data_ + size_; }
    const T* begin() const { return data_; }
    const T* end() const { return data_ + size_; }
    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    T& back() { return data_[size_ - 1]; }

    void push_back(const T& value) {
        if (size_ == capacity_) grow(size_ + 1);
        data_[size_++] = value;
    }
    // New elements are left as they were.
    void resize(std::uint32_t size) {
        if (size > capacity_) grow(size);
        size_ = size;
    }
    void clear() { size_ = 0; }
    // Also gives back the memory beyond the inline part when more than `kept` elements are held.
    void clear_beyond(std::uint32_t kept) {
        size_ = 0;
        if (capacity_ <= kept) return;
        heap_.reset();
        data_ = inline_;
        capacity_ = N;
    }

  private:
    void grow(std::uint32_t wanted) {
        const std::uint32_t capacity = wanted > capacity_ * 2 ? wanted : capacity_ * 2;
        std::unique_ptr<T[]> grown(new T[capacity]);
        for (std::uint32_t i = 0; i < size_; ++i) grown[i] = data_[i];
        heap_ = std::move(grown);
        data_ = heap_.get();
        capacity_ = capacity;
    }

    T inline_[N];
    T* data_ = inline_;
    std::uint32_t size_ = 0;
    std::uint32_t capacity_ = N;
    std::unique_ptr<T[]> heap_;
};

}  // namespace infersched::kserve
