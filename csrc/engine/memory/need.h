// How much device memory the batches of a model take at one placement, and which sizes are proven.
//
// Frameworks keep what they have allocated: an instance takes nothing new for a batch no larger
// than its largest one so far, its mark; bytes_per_row for every row beyond it, and base_bytes with
// the first batch. Every instance has an allocator of its own, and which of them runs a batch is
// not told: marks_[j] is a size that more than j instances are known to have run, because so many
// batches of that size ran at once. A batch is taken to come to the instance of the least mark.
//
// The instances may be on several devices, about as many on each, and which device runs a batch is
// not told either: no device has more large sizes than it has instances. What they take is learned
// on each device by itself; the one that is surest tells for all.
//
// A size is rows, each weighed by its bytes against those of the model's first request (row_size)
// where those differ.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/time.h"
#include "engine/memory/readings.h"

namespace infersched::engine {

// What a reading tells of a device.
struct DeviceFigures {
    double used_bytes = 0;
    bool tells_own = false;
    double own_bytes = 0;      // of the servers' processes
    std::uint64_t takers = 0;  // batches that have taken memory there, of all models
    double shown_size = 0;     // the largest of the model's that it shows first
};

class MemoryNeed {
  public:
    MemoryNeed() : marks_(1, 0.0) {}

    // `on_device`: of the instances, on each of the devices.
    void set_instances(std::uint32_t instances, std::uint32_t on_device);
    void set_devices(std::size_t count) { readings_.resize(count); }
    bool has_devices(std::size_t count) const { return readings_.size() == count; }
    std::uint32_t on_device() const { return on_device_; }
    void forget_marks();
    // The server is gone, or there again: started anew, with empty allocators, or never away.
    void note_away();
    void note_return(Nanos now);
    // Whether a reading is of a time when it was not there.
    bool away(Nanos measured_at) const { return measured_at <= away_until_; }
    // Of readings after that: nothing is kept if far less is used than before, or if that cannot be
    // told. `measures`: this one shows what is kept.
    void look_back(std::size_t device, double used_bytes, bool measures);
    // False: the figures make no sense and are ignored.
    bool prime(double base_bytes, double bytes_per_row, double size_high, bool fixed);

    bool known() const { return primed_ || surest().samples() > 0 || surest().by_own(); }
    // Known well enough to trust in: sizes are limited by it.
    bool confirmed() const;
    double base_bytes() const { return base_bytes_; }
    double bytes_per_row() const { return bytes_per_row_; }
    std::uint64_t samples() const { return surest().samples(); }
    double error() const { return surest().error(); }
    double mark() const { return marks_.back(); }
    double largest() const { return marks_.front(); }
    // The mark of the instances of one device: it alone may have shown what they took.
    double mark_on(std::size_t device) const { return std::max(mark(), matched_on(device)); }
    double matched_on(std::size_t device) const { return readings_[device].matched_size(); }
    double cap() const { return cap_; }
    std::uint64_t out_of_memory() const { return out_of_memory_; }
    // Batches that were larger than those before.
    std::uint64_t takes() const { return takes_; }
    void count_take() { ++takes_; }

    // What a batch of this size adds where one of `mark` has run.
    double added_bytes(double size, double mark) const;
    // The largest size that adds no more than `bytes` to what is there of `size`.
    double size_within(double bytes, double size) const;
    // The largest size that may be tried on a device. `measured_at`: of the last reading; kNever:
    // there are none that show what batches take.
    double next_size(std::size_t device, Nanos measured_at, double row_size) const;
    // The source of the figures is lost, by which so much was there for new batches.
    void note_lost(double available_bytes);
    // The same while it is.
    double lost_size() const { return std::max(lost_size_, largest()); }

    // A batch of this size ended well where no reading shows it: any instance may have run it.
    void hold(double size);
    // What the allocators keep on a device, at most.
    double held_bytes() const;
    // A batch ended well; `running`: the sizes of those that ran at the same time, itself included.
    void raise(std::vector<double>& running, Nanos now);
    // A batch of this size ended well, or (cap_before > 0) a half of one that failed. Whether that
    // allows other sizes.
    bool count_good(double size, double row_size, double cap_before);
    // A batch of this size, which can be cut, ran out of memory. Whether its size may be the cause.
    bool fail(double size, double row_size);
    // The same of a half of one of which that was so.
    void fail_half(double size, double row_size, double cap_before);
    // Out of memory for what it is: that says nothing of the size of others.
    void count_failure() { ++out_of_memory_; }
    // What the failures of a batch cut was not its size.
    void pardon(double cap_before);
    // Of a reading: free bytes.
    void note_free(double free_bytes, double headroom_bytes);
    // Of a reading that shows all that has run so far.
    void learn(std::size_t device, const DeviceFigures& figures);

    template <class Archive>
    void archive(Archive& archive);

  private:
    static bool well_learned(const MemoryReadings& readings);
    const MemoryReadings& surest() const;
    void adopt(const MemoryReadings& readings);
    void forget_readings();
    void limit_matched(double size);
    void cut(double size, double row_size);
    bool count_good_lost(double size, double row_size);

    std::vector<double> marks_;             // by instance, falling
    std::uint32_t on_device_ = 1;           // instances
    std::vector<MemoryReadings> readings_;  // by device
    bool primed_ = false;
    bool fixed_ = false;
    double base_bytes_ = 0;
    double bytes_per_row_ = 0;
    Nanos raised_at_ = std::numeric_limits<Nanos>::min();
    Nanos away_until_ = std::numeric_limits<Nanos>::min();
    double cap_ = kNoSizeLimit;
    double failed_size_ = 0;  // that set the cap
    double failed_row_size_ = 1;
    double free_least_ = kNoSizeLimit;  // since then
    // Of the halves of the last one that failed for its size.
    double half_good_ = 0;               // the largest that ended well
    double half_failed_ = kNoSizeLimit;  // the smallest that failed
    double half_row_size_ = 1;           // its rows
    std::uint32_t halves_failed_ = 0;    // of about that size
    double lost_size_ = kNoSizeLimit;    // that is allowed without figures
    std::uint64_t lost_good_ = 0;        // batches of about that size since it was set
    double good_size_ = 0;               // the largest of all that ended well
    double good_rows_ = 0;               // the most rows, whatever their size
    std::uint64_t good_ = 0;             // batches since the cap was changed
    std::uint64_t out_of_memory_ = 0;
    std::uint64_t takes_ = 0;
};

// As many rows of the usual size.
std::uint32_t whole_rows(double size);

// The next size to try after one that is proven.
double size_after(double size, double row_size);

}  // namespace infersched::engine
