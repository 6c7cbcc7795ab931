// Records in recycled slots, named by handles that go stale when the record is removed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/stable_array.h"

namespace infersched::engine {

inline constexpr std::uint32_t kNoSlot = 0xffffffff;

// Memory is bounded by the largest number of records that lived at once. A removed record keeps
// what its vectors have allocated: T::recycle() empties it for the next use.
template <class T>
class SlotMap {
  public:
    // The slot of an empty record.
    std::uint32_t add();
    void remove(std::uint32_t slot) {
        Entry& entry = entries_[slot];
        entry.value.recycle();
        entry.live = false;
        if (++entry.generation == 0) entry.generation = 1;
        entry.next_free = first_free_;
        first_free_ = slot;
        --live_;
    }

    // What is needed in a moment and may be in no cache; two lines are what is mostly needed.
    void prefetch(std::uint32_t slot) const {
        const auto* entry = reinterpret_cast<const char*>(&entries_[slot]);
        __builtin_prefetch(entry, 1);
        __builtin_prefetch(entry + kLine, 1);
    }

    T& operator[](std::uint32_t slot) { return entries_[slot].value; }
    const T& operator[](std::uint32_t slot) const { return entries_[slot].value; }

    std::uint64_t handle(std::uint32_t slot) const {
        return static_cast<std::uint64_t>(entries_[slot].generation) << 32 | slot;
    }

    // The slot that `handle` names, or kNoSlot when it is stale.
    std::uint32_t find(std::uint64_t handle) const {
        const auto slot = static_cast<std::uint32_t>(handle);
        if (slot >= entries_.size()) return kNoSlot;
        const Entry& entry = entries_[slot];
        return entry.live && entry.generation == handle >> 32 ? slot : kNoSlot;
    }

    bool live(std::uint32_t slot) const { return entries_[slot].live; }
    // One past the largest slot ever used, and the number of live records.
    std::uint32_t slots() const { return entries_.size(); }
    std::uint32_t size() const { return live_; }

    // Generations and the order of the free slots are state: they decide later handles.
    template <class Archive>
    void archive_slots(Archive& archive) {
        archive.vector_size(entries_, 13);
        entries_.each([&](Entry& entry) {
            archive(entry.generation);
            archive(entry.next_free);
            archive(entry.live);
        });
        archive(first_free_);
        archive(live_);
    }

  private:
    // So many that every record begins with a line of its own.
    static constexpr std::size_t kLine = 64;

    struct alignas(kLine) Entry {
        std::uint32_t generation = 1;
        std::uint32_t next_free = kNoSlot;
        bool live = false;
        T value;
    };
    StableArray<Entry> entries_;
    std::uint32_t first_free_ = kNoSlot;
    std::uint32_t live_ = 0;
};

template <class T>
std::uint32_t SlotMap<T>::add() {
    std::uint32_t slot = first_free_;
    if (slot == kNoSlot) {
        slot = entries_.size();
        entries_.push_back();
    } else {
        first_free_ = entries_[slot].next_free;
    }
    entries_[slot].live = true;
    ++live_;
    return slot;
}

}  // namespace infersched::engine
