#include "engine/triton/queue.h"

#include <algorithm>

namespace infersched::engine {
namespace {

bool operator==(const TritonQueuePolicy& a, const TritonQueuePolicy& b) {
    return a.delay_timed_out == b.delay_timed_out && a.timeout_ns == b.timeout_ns &&
           a.timeout_override == b.timeout_override && a.requests_max == b.requests_max;
}

bool has_timed_out(const RequestRecord& request, Nanos now) {
    return !request.delayed && now > request.timeout_at;
}

}  // namespace

TritonBatching normalised(TritonBatching batching, std::uint32_t rows_max) {
    auto& sizes = batching.preferred_rows;
    const auto unfit = [=](std::uint32_t size) { return size == 0 || size > rows_max; };
    sizes.erase(std::remove_if(sizes.begin(), sizes.end(), unfit), sizes.end());
    std::sort(sizes.begin(), sizes.end());
    sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
    batching.queue_delay_max_ns = std::max<Nanos>(batching.queue_delay_max_ns, 0);
    if (!batching.dynamic) {
        batching.preferred_rows.clear();
        batching.queue_delay_max_ns = 0;
        batching.levels.clear();
    }
    if (batching.levels.empty()) batching.levels.emplace_back();
    const auto levels = static_cast<std::uint32_t>(batching.levels.size());
    batching.default_level = std::clamp(batching.default_level, 1u, levels);
    return batching;
}

bool operator==(const TritonBatching& a, const TritonBatching& b) {
    const auto same = [](const TritonQueuePolicy& x, const TritonQueuePolicy& y) { return x == y; };
    return a.dynamic == b.dynamic && a.preferred_rows == b.preferred_rows &&
           a.queue_delay_max_ns == b.queue_delay_max_ns &&
           a.preserve_ordering == b.preserve_ordering && a.default_level == b.default_level &&
           std::equal(a.levels.begin(), a.levels.end(), b.levels.begin(), b.levels.end(), same);
}

void TritonQueue::push(Requests& records, std::uint32_t slot) {
    const RequestRecord& request = records[slot];
    TritonLevel& level = levels[request.level - 1];
    (request.delayed ? level.delayed : level.waiting)
        .append<&RequestRecord::in_group>(records, slot);
    ++level.requests;
    ++requests;
    timed += request.timeout_at != kNever;
}

void TritonQueue::erase(Requests& records, std::uint32_t slot) {
    const RequestRecord& request = records[slot];
    TritonLevel& level = levels[request.level - 1];
    (request.delayed ? level.delayed : level.waiting)
        .unlink<&RequestRecord::in_group>(records, slot);
    --level.requests;
    --requests;
    timed -= request.timeout_at != kNever;
}

void TritonQueue::delay(Requests& records, std::uint32_t slot) {
    erase(records, slot);
    records[slot].delayed = true;
    push(records, slot);
}

bool TritonQueue::consistent(const Requests& records) const {
    std::uint64_t listed = 0;
    std::uint64_t with_timeout = 0;
    for (std::size_t i = 0; i < levels.size(); ++i) {
        std::uint32_t of_level = 0;
        for (const bool delayed : {false, true}) {
            const RequestList& list = delayed ? levels[i].delayed : levels[i].waiting;
            for (std::uint32_t slot = list.first; slot != kNoSlot;
                 slot = records[slot].in_group.next) {
                const RequestRecord& request = records[slot];
                if (!records.live(slot) || !request.queued || !request.in_levels) return false;
                if (request.level != i + 1 || request.delayed != delayed) return false;
                ++of_level;
                with_timeout += request.timeout_at != kNever;
            }
        }
        if (of_level != levels[i].requests) return false;
        listed += of_level;
    }
    return listed == requests && with_timeout == timed && (!growing || !formed.empty());
}

TritonCursor::TritonCursor(Requests& records, TritonQueue& queue, const TritonBatching& batching,
                           Nanos now)
    : records_(records), queue_(queue), batching_(batching), now_(now) {
    if (!queue_.levels.empty()) slot_ = queue_.levels.front().waiting.first;
    settle();
}

void TritonCursor::advance() {
    slot_ = records_[slot_].in_group.next;
    ++passed_;
    settle();
}

// Takes those that timed out out of the way, up to the next that has not.
void TritonCursor::pass_timed_out() {
    while (slot_ != kNoSlot && has_timed_out(records_[slot_], now_)) {
        const std::uint32_t next = records_[slot_].in_group.next;
        if (batching_.levels[level_].delay_timed_out) {
            queue_.delay(records_, slot_);
        } else {
            expired.push_back(slot_);
        }
        slot_ = next;
    }
}

void TritonCursor::settle() {
    while (!at_end()) {
        if (!at_delayed_) {
            pass_timed_out();
            if (slot_ != kNoSlot) return;
            at_delayed_ = true;
            slot_ = queue_.levels[level_].delayed.first;
        }
        if (slot_ != kNoSlot || at_end()) return;
        at_delayed_ = false;
        slot_ = queue_.levels[++level_].waiting.first;
    }
}

std::vector<std::uint32_t> timed_out(const Requests& records, const TritonQueue& queue,
                                     const TritonBatching& batching, Nanos now) {
    std::vector<std::uint32_t> found;
    for (std::size_t i = 0; i < queue.levels.size(); ++i) {
        if (batching.levels[i].delay_timed_out) continue;
        for (std::uint32_t slot = queue.levels[i].waiting.first; slot != kNoSlot;
             slot = records[slot].in_group.next) {
            if (has_timed_out(records[slot], now)) found.push_back(slot);
        }
    }
    return found;
}

}  // namespace infersched::engine
