// Models with requests that have come of age, by the moment at which the first one did.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/time.h"

namespace infersched::engine {

class AgedModels {
  public:
    struct Entry {
        Nanos at = 0;
        std::uint32_t model = 0;
        bool before(const Entry& other) const {
            return at != other.at ? at < other.at : model < other.model;
        }
    };

    bool empty() const { return heap_.empty(); }
    const Entry& first() const { return heap_.front(); }
    void push(const Entry& entry) {
        heap_.push_back(entry);
        std::push_heap(heap_.begin(), heap_.end(), later);
    }
    Entry pop() {
        std::pop_heap(heap_.begin(), heap_.end(), later);
        const Entry entry = heap_.back();
        heap_.pop_back();
        return entry;
    }
    const std::vector<Entry>& entries() const { return heap_; }

    template <class Archive>
    void archive(Archive& archive) {
        archive.vector_size(heap_, 12);
        for (Entry& entry : heap_) {
            archive(entry.at);
            archive(entry.model);
        }
    }

  private:
    static bool later(const Entry& one, const Entry& other) { return other.before(one); }

    std::vector<Entry> heap_;
};

}  // namespace infersched::engine
