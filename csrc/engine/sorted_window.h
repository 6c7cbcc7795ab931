// The last `capacity` values, in the order they came and sorted: their quantiles at no cost.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace infersched::engine {

class SortedWindow {
  public:
    explicit SortedWindow(std::uint32_t capacity) : capacity_(capacity) {}

    std::size_t size() const { return sorted_.size(); }
    bool empty() const { return sorted_.empty(); }
    // The value with `rank` smaller ones; rank < size().
    double at_rank(std::size_t rank) const { return sorted_[rank]; }
    // The lower one of two in the middle.
    double median() const { return sorted_[(sorted_.size() - 1) / 2]; }
    double largest() const { return sorted_.back(); }
    const std::vector<float>& values() const { return sorted_; }

    // As they came, up to the first push() of a full window.
    const std::vector<float>& in_order() const { return values_; }

    void push(float value) {
        value += 0.0f;  // one zero only, or a loaded window would not equal the saved one
        if (values_.size() < capacity_) {
            values_.push_back(value);
            sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), value), value);
            return;
        }
        replace(values_[next_], value);
        values_[next_] = value;
        next_ = next_ + 1 == capacity_ ? 0 : next_ + 1;
    }

    void clear() {
        values_.clear();
        sorted_.clear();
        next_ = 0;
    }
    // Forgets all but the newest `count`, less the newest `less` of them.
    void keep(std::size_t count, std::size_t less) {
        std::rotate(values_.begin(), values_.begin() + next_, values_.end());
        next_ = 0;
        values_.resize(values_.size() - std::min(less, values_.size()));
        const std::size_t kept = std::min(count, values_.size());
        values_.erase(values_.begin(), values_.end() - static_cast<std::ptrdiff_t>(kept));
        sorted_ = values_;
        std::sort(sorted_.begin(), sorted_.end());
    }
    std::size_t memory_bytes() const {
        return (values_.capacity() + sorted_.capacity()) * sizeof(float);
    }

    template <class Archive>
    void archive(Archive& archive) {
        archive(values_);
        archive(next_);
        if (!archive.require(values_.size() <= capacity_ && next_ < capacity_)) clear();
        if constexpr (Archive::kReads) {
            sorted_ = values_;
            std::sort(sorted_.begin(), sorted_.end());
        }
    }

  private:
    // Takes `old` out of the sorted values and puts `value` in, moving what lies between.
    void replace(float old, float value) {
        const auto from = std::lower_bound(sorted_.begin(), sorted_.end(), old);
        if (value > old) {
            const auto to = std::lower_bound(from, sorted_.end(), value);
            std::move(from + 1, to, from);
            *(to - 1) = value;
        } else {
            const auto to = std::upper_bound(sorted_.begin(), from, value);
            std::move_backward(to, from, from + 1);
            *to = value;
        }
    }

    std::uint32_t capacity_;
    std::uint32_t next_ = 0;     // the oldest value's place when full
    std::vector<float> values_;  // a ring
    std::vector<float> sorted_;
};

}  // namespace infersched::engine
