// What the batches of a placement may have taken of one of its devices since it was last read.
//
// Which instance, and with that which device, takes a batch is Triton's choice. A device with n
// instances runs no more than n of them at once, and an instance keeps its largest: the n largest
// of those that grow are counted, from the n least sizes that instances had before.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/time.h"
#include "engine/memory/need.h"

namespace infersched::engine {

// A batch larger than those before it.
struct MemoryGrowth {
    double from = 0;  // that every instance has run
    double to = 0;
};

class MemoryTaking {
  public:
    // One has ended: it counts until a reading is newer.
    void end(const MemoryGrowth& growth, std::uint32_t instances, Nanos now);
    // Those that ended before `measured_at` are in a reading.
    void show(Nanos measured_at);
    bool settled() const { return unseen_.empty(); }
    Nanos last_end() const { return settled() ? 0 : unseen_.back().since; }

    // Anew, of these that are out and those that have ended.
    // `shown`: that all instances there have run, by readings.
    void count(const std::vector<MemoryGrowth>& out, const MemoryNeed& need, double shown);
    std::uint64_t bytes() const { return bytes_; }
    // The largest size that one more batch may have for no more than so many further bytes, where
    // all instances have run `mark`.
    double size_within(double bytes, const MemoryNeed& need, double mark) const;
    // The largest of those that readings have shown since this was asked.
    double take_shown() { return std::exchange(shown_, 0); }

    template <class Archive>
    void archive(Archive& archive);

  private:
    struct Unseen {
        Nanos since = 0;
        MemoryGrowth growth;
        std::uint32_t instances = 1;  // for which it stands
    };

    std::vector<Unseen> unseen_;  // by their ends
    std::uint64_t bytes_ = 0;
    MemoryGrowth last_;  // of as many as there are instances, if there are: one more replaces it
    bool full_ = false;
    double shown_ = 0;
};

}  // namespace infersched::engine
