// Objects that are used again instead of being freed. Bounded, so a burst does not stay in memory.
#pragma once

#include <cstddef>
#include <vector>

namespace infersched::kserve {

// T needs recycle(): back to the state of a new object, with the memory worth keeping.
template <typename T, std::size_t kKept>
class FreeList {
  public:
    FreeList() { free_.reserve(kKept); }
    FreeList(const FreeList&) = delete;
    FreeList& operator=(const FreeList&) = delete;

    T* take() {
        if (free_.empty()) return new T();
        T* object = free_.back();
        free_.pop_back();
        return object;
    }

    void give(T* object) {
        if (free_.size() == kKept) {
            delete object;
            return;
        }
        object->recycle();
        free_.push_back(object);
    }

  private:
    std::vector<T*> free_;
};

}  // namespace infersched::kserve
