#include "engine/admission/held_batches.h"

#include <array>
#include <limits>

namespace infersched::engine {
namespace {

constexpr std::uint32_t kStepsMax = 4 * kEndsMax;

// The first ones of ends that are added, and how many those are.
class FirstEnds {
  public:
    void add(Nanos end) {
        std::size_t place = std::min(count_++, kEndsMax);
        if (place == kEndsMax && end >= first_[--place]) return;
        for (; place > 0 && first_[place - 1] > end; --place) first_[place] = first_[place - 1];
        first_[place] = end;
    }
    const Nanos* data() const { return first_.data(); }
    std::size_t count() const { return count_; }

  private:
    std::array<Nanos, kEndsMax> first_;  // of `count_`
    std::size_t count_ = 0;
};

std::uint32_t slots_beside(std::uint32_t reserve, std::uint32_t slots) {
    return slots > reserve ? slots - reserve : 1;
}

}  // namespace

// Every batch goes to the executor that is free first. Those that got one are free again in the
// order in which they got it: two queues, and the earlier of their heads is next.
Nanos free_behind(const Nanos* ends, std::size_t ends_count, std::uint32_t slots,
                  std::uint32_t batches, Nanos batch_ns, Nanos now) {
    if (slots == 0) return kNever;
    const std::size_t busy = std::min<std::size_t>(ends_count, slots);
    const std::size_t idle = slots - busy;
    if (batches < idle) return now;
    const std::size_t count = std::min<std::size_t>(slots, kEndsMax);
    const auto first_end = [&](std::size_t i) {
        return i < idle ? now : std::max(ends[i - idle], now);
    };
    std::array<Nanos, kEndsMax> again;
    std::size_t taken = 0;  // executors that got a batch, in again[0, taken) by when they are free
    for (std::uint32_t left = batches, steps = 0;; --left, ++steps) {
        if (taken == count || steps == kStepsMax) {
            const auto rounds = static_cast<Nanos>(left / taken);
            return add_saturating(again[left % taken], rounds * batch_ns);
        }
        const bool returns = taken > 0 && again[0] < first_end(taken);
        const Nanos at = returns ? again[0] : first_end(taken);
        if (left == 0) return at;
        if (returns) {
            std::copy(again.begin() + 1, again.begin() + taken, again.begin());
        } else {
            ++taken;
        }
        again[taken - 1] = add_saturating(at, batch_ns);
    }
}

bool RunningBatch::operator<(const RunningBatch& other) const {
    if (reserve != other.reserve) return reserve > other.reserve;
    return end != other.end ? end < other.end : overdue_at < other.overdue_at;
}

bool RunningBatch::operator==(const RunningBatch& other) const {
    return reserve == other.reserve && end == other.end && overdue_at == other.overdue_at;
}

void HeldBatches::add(const RunningBatch& batch) {
    batches_.insert(std::upper_bound(batches_.begin(), batches_.end(), batch), batch);
}

void HeldBatches::remove(const RunningBatch& batch) {
    const auto at = std::lower_bound(batches_.begin(), batches_.end(), batch);
    if (at != batches_.end() && *at == batch) batches_.erase(at);
}

void HeldBatches::remove_ended(Nanos at) {
    const auto ended = [&](const RunningBatch& batch) { return batch.end <= at; };
    batches_.erase(std::remove_if(batches_.begin(), batches_.end(), ended), batches_.end());
}

template <class Visit>
void HeldBatches::each_reserve(std::uint32_t reserve, std::uint32_t slots, Visit visit) const {
    auto last = batches_.begin();
    while (reserve > 0) {
        while (last != batches_.end() && last->reserve >= reserve) ++last;
        visit(slots_beside(reserve, slots), last);
        reserve = last == batches_.end() ? 0 : last->reserve;
    }
}

// Those that leave less run on executors that it leaves.
std::uint32_t HeldBatches::places(std::uint32_t reserve, std::uint32_t slots, Nanos now) const {
    std::uint32_t least = slots;
    std::uint32_t out = 0;
    auto held = batches_.begin();
    each_reserve(reserve, slots, [&](std::uint32_t beside, auto last) {
        for (; held != last; ++held) out += held->overdue_at > now;
        least = std::min(least, beside - std::min(out, beside));
    });
    return least;
}

// As places(), of all reserves at once: as many batches count for those between two that run, and
// the more a batch leaves the fewer executors there are for it.
std::uint32_t HeldBatches::barred_from(std::uint32_t slots, Nanos now) const {
    if (slots == 0) return 1;
    std::uint32_t least = std::numeric_limits<std::uint32_t>::max();
    std::uint32_t out = 0;
    for (auto held = batches_.begin(); held != batches_.end();) {
        const std::uint32_t reserve = held->reserve;
        for (; held != batches_.end() && held->reserve == reserve; ++held) {
            out += held->overdue_at > now;
        }
        const std::uint32_t below = held == batches_.end() ? 0 : held->reserve;
        const std::uint32_t from = std::max(below + 1, slots - std::min(out, slots));
        if (out > 0 && from <= reserve) least = from;
    }
    return least;
}

Nanos HeldBatches::place_at(std::uint32_t reserve, std::uint32_t slots, std::uint32_t batches,
                            Nanos batch_ns, Nanos now) const {
    Nanos latest = now;
    FirstEnds ends;
    auto held = batches_.begin();
    each_reserve(reserve, slots, [&](std::uint32_t beside, auto last) {
        if (batches + static_cast<std::size_t>(last - batches_.begin()) < beside) return;
        for (; held != last; ++held) ends.add(held->end);
        latest = std::max(latest,
                          free_behind(ends.data(), ends.count(), beside, batches, batch_ns, now));
    });
    return latest;
}

}  // namespace infersched::engine
