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
        const std::uint32_t bucket = bucket_at(deadline >> kShifts[ring]);
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
        const auto bucket = [&](Nanos i) { return ring * kBuckets + bucket_at(first + i); };
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

void Backlog::start(const RunningBatch& batch) {
    ++changes_;
    if (batch.reserve > 0) held_.add(batch);
    ends_.insert(std::upper_bound(ends_.begin(), ends_.end(), batch.end), batch.end);
}

void Backlog::end(const RunningBatch& batch) {
    ++changes_;
    if (batch.reserve > 0) held_.remove(batch);
    const auto place = std::lower_bound(ends_.begin(), ends_.end(), batch.end);
    if (place != ends_.end() && *place == batch.end) ends_.erase(place);
}

void Backlog::set_paused(const std::vector<Nanos>& until) {
    recount_at_ = until.empty() ? kNever : until.front();
    if (until == paused_) return;
    for (const Nanos at : paused_) end({at});
    for (const Nanos at : until) start({at});
    paused_ = until;
}

Nanos Backlog::free_beside(Nanos now) const {
    if (ends_.size() + 1 < slots_) return now;
    return ends_.empty() ? kNever : std::max(ends_.front(), now);
}

std::uint32_t Backlog::places(std::uint32_t reserve, Nanos now) const {
    return held_.places(reserve, slots_, now);
}

Nanos Backlog::place_at(std::uint32_t reserve, std::uint32_t batches, Nanos batch_ns,
                        Nanos now) const {
    return held_.place_at(reserve, slots_, batches, batch_ns, now);
}

bool Backlog::runs_as(Backlog other) const {
    other.set_paused(paused_);
    return ends_ == other.ends_ && held_ == other.held_;
}

std::uint32_t Backlog::free_by(Nanos at) const {
    const auto later = ends_.end() - std::upper_bound(ends_.begin(), ends_.end(), at);
    return slots_ - static_cast<std::uint32_t>(std::min<std::ptrdiff_t>(later, slots_));
}

Nanos Backlog::free_at(std::uint32_t batches, Nanos batch_ns, Nanos now) const {
    return free_behind(ends_.data(), ends_.size(), slots_, batches, batch_ns, now);
}

}  // namespace infersched::engine
