// Batches that leave executors to others (batching/reserve.h), and what room they have for more.
//
// What leaves more leaves what others leave as well. So one more batch has a place where, of its
// own reserve and of every lesser one, fewer batches that leave so many run than there are
// executors beside those left.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"

namespace infersched::engine {

// Executors looked at one by one; further ones are taken to be free with the last of them.
inline constexpr std::size_t kEndsMax = 64;

// When one of `slots` executors is free for a batch behind `batches` others that take `batch_ns`
// each. `ends`: of those that run, sorted.
Nanos free_behind(const Nanos* ends, std::size_t ends_count, std::uint32_t slots,
                  std::uint32_t batches, Nanos batch_ns, Nanos now);

struct RunningBatch {
    Nanos end = 0;  // as it is expected
    std::uint32_t reserve = 0;
    // From here on it hangs, and takes the place of no other one that leaves executors to others.
    Nanos overdue_at = kNever;
    // Those that leave more are first, and of them the first to end.
    bool operator<(const RunningBatch& other) const;
    bool operator==(const RunningBatch& other) const;
};

class HeldBatches {
  public:
    void clear() { batches_.clear(); }
    void add(const RunningBatch& batch);
    // One like it.
    void remove(const RunningBatch& batch);
    void remove_ended(Nanos at);
    std::size_t size() const { return batches_.size(); }
    std::vector<RunningBatch>::const_iterator begin() const { return batches_.begin(); }
    std::vector<RunningBatch>::const_iterator end() const { return batches_.end(); }
    bool operator==(const HeldBatches& other) const { return batches_ == other.batches_; }

    // How many more of `slots` executors may run batches that leave so many.
    std::uint32_t places(std::uint32_t reserve, std::uint32_t slots, Nanos now) const;
    // What leaves so many executors, or more, has no place.
    std::uint32_t barred_from(std::uint32_t slots, Nanos now) const;
    // When there is a place behind `batches` others of the kind. What ought to have ended is over.
    Nanos place_at(std::uint32_t reserve, std::uint32_t slots, std::uint32_t batches,
                   Nanos batch_ns, Nanos now) const;

  private:
    // Of `reserve`, and of the lesser ones that batches leave: visits on how many executors such
    // batches run, and where they end in `batches_`.
    template <class Visit>
    void each_reserve(std::uint32_t reserve, std::uint32_t slots, Visit visit) const;

    std::vector<RunningBatch> batches_;  // sorted
};

}  // namespace infersched::engine
