#include "engine/admission/backlog.h"

#include <algorithm>

namespace infersched::engine {

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
    if (reserve > 0) held_.push_back({end, reserve, overdue_at});
    ends_.insert(std::upper_bound(ends_.begin(), ends_.end(), end), end);
}

void Backlog::end(Nanos end, std::uint32_t reserve) {
    ++changes_;
    const auto held = std::find_if(held_.begin(), held_.end(), [&](const Held& known) {
        return known.end == end && known.reserve == reserve;
    });
    if (held != held_.end()) held_.erase(held);
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
    while (reserve > 0) {
        visit(reserve);
        std::uint32_t next = 0;
        for (const Held& held : held_) {
            if (held.reserve < reserve) next = std::max(next, held.reserve);
        }
        reserve = next;
    }
}

// Those that leave less run on executors that it leaves.
std::uint32_t Backlog::places(std::uint32_t reserve, Nanos now) const {
    std::uint32_t least = slots_;
    each_reserve(reserve, [&](std::uint32_t left) {
        const auto out = std::count_if(held_.begin(), held_.end(), [&](const Held& held) {
            return held.reserve >= left && held.overdue_at > now;
        });
        const std::uint32_t all = slots_beside(left);
        const auto taken = static_cast<std::uint32_t>(std::min<std::ptrdiff_t>(out, all));
        least = std::min(least, all - taken);
    });
    return least;
}

Nanos Backlog::place_at(std::uint32_t reserve, std::uint32_t batches, Nanos batch_ns,
                        Nanos now) const {
    Nanos latest = now;
    each_reserve(reserve, [&](std::uint32_t left) {
        Backlog places;
        places.set_slots(slots_beside(left));
        for (const Held& held : held_) {
            if (held.reserve >= left) places.start(held.end);
        }
        latest = std::max(latest, places.free_at(batches, batch_ns, now));
    });
    return latest;
}

bool Backlog::runs_as(Backlog other) const {
    other.set_paused(paused_);
    const auto same = [](const Held& a, const Held& b) {
        return a.end == b.end && a.reserve == b.reserve;
    };
    return ends_ == other.ends_ &&
           std::is_permutation(held_.begin(), held_.end(), other.held_.begin(), other.held_.end(),
                               same);
}

std::uint32_t Backlog::free_by(Nanos at) const {
    const auto later = ends_.end() - std::upper_bound(ends_.begin(), ends_.end(), at);
    return slots_ - static_cast<std::uint32_t>(std::min<std::ptrdiff_t>(later, slots_));
}

// Every batch goes to the executor that is free first. Those that got one are free again in the
// order in which they got it: two queues, and the earlier of their heads is next.
Nanos Backlog::free_at(std::uint32_t batches, Nanos batch_ns, Nanos now) const {
    if (slots_ == 0) return kNever;
    const std::size_t busy = std::min<std::size_t>(ends_.size(), slots_);
    const std::size_t idle = slots_ - busy;
    if (batches < idle) return now;
    const std::size_t count = std::min<std::size_t>(slots_, kEndsMax);
    const auto first_end = [&](std::size_t i) {
        return i < idle ? now : std::max(ends_[i - idle], now);
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
