#include "engine/admission/backlog.h"

#include <algorithm>

namespace infersched::engine {

bool Backlog::Held::operator<(const Held& other) const {
    return reserve != other.reserve ? reserve > other.reserve : end < other.end;
}

class Backlog::FirstEnds {
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

void Backlog::set_slots(std::uint32_t slots) {
    if (slots != slots_) ++changes_;
    slots_ = slots;
}

BacklogPlace Backlog::place(std::size_t level, Nanos deadline, Nanos work_ns, Nanos now) {
    BacklogPlace place;
    place.work_ns = work_ns;
    place.level = static_cast<std::uint8_t>(std::min(level, kLevels - 1));
    place.bucket = kNowhere;
    if (deadline == kNever || deadline < now) return place;
    for (std::uint32_t ring = 0; ring < kShifts.size(); ++ring) {
        if ((deadline - now) >> kShifts[ring] >= kBuckets - 1) continue;
        const auto bucket = static_cast<std::uint32_t>((deadline >> kShifts[ring]) % kBuckets);
        place.bucket = static_cast<std::uint8_t>(ring * kBuckets + bucket);
        break;
    }
    return place;
}

bool Backlog::sound(const BacklogPlace& place) {
    const bool ring = place.bucket == kNowhere || place.bucket < kBuckets * kShifts.size();
    return ring && place.level < kLevels && place.work_ns >= 0;
}

void Backlog::add(const BacklogPlace& place) {
    ++changes_;
    queued_ns_ += place.work_ns;
    if (place.bucket == kNowhere) return;
    if (place.level >= rings_.size()) rings_.resize(place.level + 1u, Rings{});
    rings_[place.level][place.bucket] += place.work_ns;
}

void Backlog::remove(const BacklogPlace& place) {
    ++changes_;
    queued_ns_ -= place.work_ns;
    if (place.bucket != kNowhere) rings_[place.level][place.bucket] -= place.work_ns;
}

Nanos Backlog::queued_before(std::size_t level, Nanos deadline, Nanos now) const {
    if (deadline < now) return 0;
    const std::size_t levels = std::min(level + 1, rings_.size());
    Nanos sum = 0;
    for (std::uint32_t ring = 0; ring < kShifts.size(); ++ring) {
        const std::uint32_t shift = kShifts[ring];
        const Nanos first = now >> shift;
        const Nanos count = std::min<Nanos>((deadline >> shift) - first, kBuckets);
        const auto bucket = [&](Nanos i) {
            return ring * kBuckets + static_cast<std::size_t>((first + i) % kBuckets);
        };
        for (std::size_t l = 0; l < levels; ++l) {
            for (Nanos i = 0; i < count; ++i) sum += rings_[l][bucket(i)];
            if (count == kBuckets) continue;
            const Nanos into = (deadline & ((Nanos{1} << shift) - 1)) >> (shift - 10);
            sum += rings_[l][bucket(count)] / 1024 * into;
        }
    }
    return sum;
}

Nanos Backlog::room(std::size_t level, Nanos horizon_ns, Nanos now) const {
    Nanos least = kNever;
    for (const Nanos part : kRoomParts) {
        const Nanos span = horizon_ns / kRoomParts.back() * part;
        const Nanos work = queued_before(level, add_saturating(now, span), now);
        if (work == 0) continue;
        Nanos left = static_cast<Nanos>(slots_) * (span + span / kRoomMore) - work;
        for (const Nanos end : ends_) left -= std::clamp<Nanos>(end - now, 0, span);
        if (left < span) least = std::min(least, std::max<Nanos>(left, 0));
    }
    return least;
}

void Backlog::start(Nanos end, std::uint32_t reserve, Nanos overdue_at) {
    ++changes_;
    if (reserve > 0) {
        const Held held{end, reserve, overdue_at};
        held_.insert(std::upper_bound(held_.begin(), held_.end(), held), held);
    }
    ends_.insert(std::upper_bound(ends_.begin(), ends_.end(), end), end);
}

void Backlog::end(Nanos end, std::uint32_t reserve) {
    ++changes_;
    const Held same{end, reserve, kNever};
    const auto held = std::lower_bound(held_.begin(), held_.end(), same);
    if (held != held_.end() && !(same < *held)) held_.erase(held);
    const auto place = std::lower_bound(ends_.begin(), ends_.end(), end);
    if (place != ends_.end() && *place == end) ends_.erase(place);
}

void Backlog::set_paused(const std::vector<Nanos>& until) {
    recount_at_ = until.empty() ? kNever : until.front();
    if (until == paused_) return;
    for (const Nanos at : paused_) end(at);
    for (const Nanos at : until) start(at);
    paused_ = until;
}

Nanos Backlog::free_beside(Nanos now) const {
    if (ends_.size() + 1 < slots_) return now;
    return ends_.empty() ? kNever : std::max(ends_.front(), now);
}

template <class Visit>
void Backlog::each_reserve(std::uint32_t reserve, Visit visit) const {
    auto last = held_.begin();
    while (reserve > 0) {
        while (last != held_.end() && last->reserve >= reserve) ++last;
        visit(slots_beside(reserve), last);
        reserve = last == held_.end() ? 0 : last->reserve;
    }
}

// Those that leave less run on executors that it leaves.
std::uint32_t Backlog::places(std::uint32_t reserve, Nanos now) const {
    std::uint32_t least = slots_;
    std::uint32_t out = 0;
    auto held = held_.begin();
    each_reserve(reserve, [&](std::uint32_t slots, auto last) {
        for (; held != last; ++held) out += held->overdue_at > now;
        least = std::min(least, slots - std::min(out, slots));
    });
    return least;
}

Nanos Backlog::place_at(std::uint32_t reserve, std::uint32_t batches, Nanos batch_ns,
                        Nanos now) const {
    Nanos latest = now;
    FirstEnds ends;
    auto held = held_.begin();
    each_reserve(reserve, [&](std::uint32_t slots, auto last) {
        if (batches + static_cast<std::size_t>(last - held_.begin()) < slots) return;
        for (; held != last; ++held) ends.add(held->end);
        latest =
            std::max(latest, free_at(ends.data(), ends.count(), slots, batches, batch_ns, now));
    });
    return latest;
}

bool Backlog::runs_as(Backlog other) const {
    other.set_paused(paused_);
    const auto same = [](const Held& a, const Held& b) { return !(a < b) && !(b < a); };
    return ends_ == other.ends_ &&
           std::equal(held_.begin(), held_.end(), other.held_.begin(), other.held_.end(), same);
}

std::uint32_t Backlog::free_by(Nanos at) const {
    const auto later = ends_.end() - std::upper_bound(ends_.begin(), ends_.end(), at);
    return slots_ - static_cast<std::uint32_t>(std::min<std::ptrdiff_t>(later, slots_));
}

Nanos Backlog::free_at(std::uint32_t batches, Nanos batch_ns, Nanos now) const {
    return free_at(ends_.data(), ends_.size(), slots_, batches, batch_ns, now);
}

// Every batch goes to the executor that is free first. Those that got one are free again in the
// order in which they got it: two queues, and the earlier of their heads is next.
Nanos Backlog::free_at(const Nanos* ends, std::size_t ends_count, std::uint32_t slots,
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

}  // namespace infersched::engine
