// The last `capacity` values, in the order they came and sorted: their quantiles at no cost. Each
// may have a tag, which costs memory from the first one that is not 0 on.
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

    void push(float value, std::uint8_t tag = 0);
    // Every value becomes changed(value, its tag), where any has a tag.
    template <class Changed>
    void change(const Changed& changed) {
        if (tags_.empty()) return;
        for (std::size_t i = 0; i < values_.size(); ++i) values_[i] = changed(values_[i], tags_[i]);
        sorted_ = values_;
        std::sort(sorted_.begin(), sorted_.end());
    }
    void clear() {
        values_.clear();
        tags_.clear();
        sorted_.clear();
        next_ = 0;
    }
    // Forgets all but the newest `count`, less the newest `less` of them.
    void keep(std::size_t count, std::size_t less) {
        keep_of(values_, count, less);
        keep_of(tags_, count, less);
        next_ = 0;
        sorted_ = values_;
        std::sort(sorted_.begin(), sorted_.end());
    }
    std::size_t memory_bytes() const {
        return (values_.capacity() + sorted_.capacity()) * sizeof(float) + tags_.capacity();
    }

    template <class Archive>
    void archive(Archive& archive) {
        archive(values_);
        archive(tags_);
        archive(next_);
        const bool tags_fit = tags_.empty() || tags_.size() == values_.size();
        if (!archive.require(values_.size() <= capacity_ && next_ < capacity_ && tags_fit)) clear();
        if constexpr (Archive::kReads) {
            sorted_ = values_;
            std::sort(sorted_.begin(), sorted_.end());
        }
    }

  private:
    template <class Value>
    void keep_of(std::vector<Value>& ring, std::size_t count, std::size_t less) {
        if (ring.empty()) return;
        std::rotate(ring.begin(), ring.begin() + next_, ring.end());
        ring.resize(ring.size() - std::min(less, ring.size()));
        const std::size_t kept = std::min(count, ring.size());
        ring.erase(ring.begin(), ring.end() - static_cast<std::ptrdiff_t>(kept));
    }
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
    std::vector<std::uint8_t> tags_;  // of values_; none: all of them 0
};

inline void SortedWindow::push(float value, std::uint8_t tag) {
    value += 0.0f;  // one zero only, or a loaded window would not equal the saved one
    if (tag != 0 && tags_.empty()) tags_.assign(values_.size(), 0);
    const bool tagged = tag != 0 || !tags_.empty();
    if (values_.size() < capacity_) {
        values_.push_back(value);
        if (tagged) tags_.push_back(tag);
        sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), value), value);
        return;
    }
    replace(values_[next_], value);
    values_[next_] = value;
    if (tagged) tags_[next_] = tag;
    next_ = next_ + 1 == capacity_ ? 0 : next_ + 1;
}

}  // namespace infersched::engine
