// Objects named by 64-bit handles (generation << 32 | slot); a stale handle finds nothing.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace infersched {

template <typename T>
class SlotMap {
  public:
    using Handle = std::uint64_t;  // 0 names nothing

    template <typename... Args>
    Handle emplace(Args&&... args) {
        std::uint32_t slot = 0;
        if (free_.empty()) {
            slot = static_cast<std::uint32_t>(entries_.size());
            entries_.emplace_back();
        } else {
            slot = free_.back();
            free_.pop_back();
        }
        Entry& entry = entries_[slot];
        // An unused entry holds T() already.
        if constexpr (sizeof...(Args) > 0) entry.value = T(std::forward<Args>(args)...);
        entry.used = true;
        ++used_;
        return handle(slot, entry.generation);
    }

    T* find(Handle name) {
        const auto slot = static_cast<std::uint32_t>(name);
        if (slot >= entries_.size()) return nullptr;
        Entry& entry = entries_[slot];
        const auto generation = static_cast<std::uint32_t>(name >> 32);
        return entry.used && entry.generation == generation ? &entry.value : nullptr;
    }

    void erase(Handle name) {
        if (find(name) == nullptr) return;
        const auto slot = static_cast<std::uint32_t>(name);
        Entry& entry = entries_[slot];
        entry.value = T();
        entry.used = false;
        // Generation 0 is never given, so that no handle is 0.
        if (++entry.generation == 0) entry.generation = 1;
        free_.push_back(slot);
        --used_;
    }

    std::size_t size() const { return used_; }

    // Calls visit(handle, value) for every object in slot order; visit must not add or erase.
    template <typename Visit>
    void each(Visit&& visit) {
        for (std::uint32_t slot = 0; slot < entries_.size(); ++slot) {
            Entry& entry = entries_[slot];
            if (entry.used) visit(handle(slot, entry.generation), entry.value);
        }
    }

  private:
    struct Entry {
        T value{};
        std::uint32_t generation = 1;
        bool used = false;
    };
    static Handle handle(std::uint32_t slot, std::uint32_t generation) {
        return static_cast<Handle>(generation) << 32 | slot;
    }

    std::deque<Entry> entries_;  // a deque keeps addresses while it grows
    std::vector<std::uint32_t> free_;
    std::size_t used_ = 0;
};

}  // namespace infersched
