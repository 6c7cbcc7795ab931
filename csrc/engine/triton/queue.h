// The queue of a model that batches as Triton's dynamic batcher does (`batching: triton`).
//
// A strict priority queue: by level, inside a level in the order of admission, behind them those of
// the level that timed out under TimeoutAction DELAY. Whether a request has timed out is looked at
// where Triton looks: when a batch is about to take it, and every half second while no instance is
// free. A request that waits is in the list of its level by RequestRecord::in_group.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/records.h"

namespace infersched::engine {

// How often requests that timed out are refused while no instance is free.
inline constexpr Nanos kTritonSweepNs = 500 * kMillisecond;

// The block made safe: sizes sorted, unique and within 1..rows_max, at least one level.
TritonBatching normalised(TritonBatching batching, std::uint32_t rows_max);
bool operator==(const TritonBatching& a, const TritonBatching& b);

struct TritonLevel {
    RequestList waiting;  // in the order of admission
    RequestList delayed;  // timed out, in the order in which that was found
    std::uint32_t requests = 0;
};

struct TritonQueue {
    std::vector<TritonLevel> levels;  // of level 1, 2, ...
    std::uint64_t requests = 0;
    std::uint64_t timed = 0;            // of these, with a timeout
    std::vector<std::uint32_t> formed;  // batches that wait for an instance, the first formed first
    bool growing = false;               // the last one formed takes more requests
    Nanos look_at = kNever;             // when the queue must be looked at again
    Nanos sweep_at = kNever;            // while no instance is free

    bool has_work() const { return requests > 0 || !formed.empty(); }
    void push(Requests& records, std::uint32_t slot);
    void erase(Requests& records, std::uint32_t slot);
    // Moves a request behind the others of its level.
    void delay(Requests& records, std::uint32_t slot);
    // Whether the lists name each live request once, as its record says.
    bool consistent(const Requests& records) const;
};

// Walks the queue in the order in which batches take requests, past those that have timed out.
class TritonCursor {
  public:
    TritonCursor(Requests& records, TritonQueue& queue, const TritonBatching& batching, Nanos now);

    bool at_end() const { return passed_ + expired.size() == queue_.requests; }
    std::uint32_t slot() const { return slot_; }
    void advance();

    // Timed out under TimeoutAction REJECT; still in the queue.
    std::vector<std::uint32_t> expired;

  private:
    void settle();
    void pass_timed_out();

    Requests& records_;
    TritonQueue& queue_;
    const TritonBatching& batching_;
    Nanos now_;
    std::size_t level_ = 0;
    bool at_delayed_ = false;
    std::uint32_t slot_ = kNoSlot;
    std::uint64_t passed_ = 0;
};

// All that timed out under TimeoutAction REJECT, wherever they wait.
std::vector<std::uint32_t> timed_out(const Requests& records, const TritonQueue& queue,
                                     const TritonBatching& batching, Nanos now);

}  // namespace infersched::engine
