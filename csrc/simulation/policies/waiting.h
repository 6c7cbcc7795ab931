// The waiting requests of one model in the order of their deadlines.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "simulation/cluster.h"

namespace infersched::simulation {

class Waiting {
  public:
    struct Entry {
        Nanos deadline_ns = 0;
        RequestId id = 0;
    };

    std::size_t size() const { return entries_.size() - head_; }
    bool empty() const { return head_ == entries_.size(); }
    Nanos deadline(std::size_t at) const { return entries_[head_ + at].deadline_ns; }
    RequestId front() const { return entries_[head_].id; }

    // Constant time where the deadline is the latest so far, as it is for a new arrival.
    void add(const Cluster& cluster, RequestId id) {
        const Entry entry{cluster.request(id).deadline_ns, id};
        auto at = entries_.end();
        while (at != entries_.begin() + static_cast<std::ptrdiff_t>(head_) &&
               (at - 1)->deadline_ns > entry.deadline_ns) {
            --at;
        }
        entries_.insert(at, entry);
    }

    void pop_front() {
        if (++head_ < kCompactAt || 2 * head_ < entries_.size()) return;
        entries_.erase(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(head_));
        head_ = 0;
    }

    void drop_front(Cluster& cluster) {
        cluster.drop(front());
        pop_front();
    }

    // Takes `rows` requests from the `from`th on, in a vector to dispatch.
    std::vector<RequestId> take(Cluster& cluster, std::size_t from, std::size_t rows) {
        std::vector<RequestId> taken = cluster.spare();
        const auto first = entries_.begin() + static_cast<std::ptrdiff_t>(head_ + from);
        for (auto it = first; it != first + static_cast<std::ptrdiff_t>(rows); ++it) {
            taken.push_back(it->id);
        }
        if (from == 0) {
            for (std::size_t i = 0; i < rows; ++i) pop_front();
        } else {
            entries_.erase(first, first + static_cast<std::ptrdiff_t>(rows));
        }
        return taken;
    }

  private:
    static constexpr std::size_t kCompactAt = 256;

    std::vector<Entry> entries_;
    std::size_t head_ = 0;
};

}  // namespace infersched::simulation
