// What the engine keeps per request and per batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "engine/engine.h"
#include "engine/slot_map.h"

namespace infersched::engine {

// A request's place in its queue: priority level, then deadline, then arrival.
struct QueueKey {
    std::uint32_t level = 0;
    std::uint32_t slot = kNoSlot;  // of the request; not part of the order
    Nanos deadline = kNever;
    std::uint64_t sequence = 0;

    bool operator<(const QueueKey& other) const {
        if (level != other.level) return level < other.level;
        if (deadline != other.deadline) return deadline < other.deadline;
        return sequence < other.sequence;
    }
};
using QueueOrder = std::set<QueueKey>;

struct Links {
    std::uint32_t previous = kNoSlot;
    std::uint32_t next = kNoSlot;
};

struct RequestRecord {
    std::uint64_t user = 0;
    std::uint64_t sequence = 0;  // of its admission
    std::uint64_t bytes = 0;
    Nanos arrival = 0;
    Nanos deadline = kNever;
    std::uint32_t model = 0;
    std::uint32_t rows = 0;
    std::uint32_t rows_sent = 0;  // [0, rows_sent) are in batches or done
    std::uint32_t level = 1;
    std::uint32_t group = kNoSlot;
    bool queued = false;                 // rows are left in its signature queue
    bool dispatched = false;             // some rows have been sent to a backend
    QueueOrder::iterator place;          // while queued
    Links in_group, in_model;            // submission order of what is queued
    std::vector<std::uint32_t> batches;  // slots of the batches that carry rows of it

    std::uint32_t rows_left() const { return rows - rows_sent; }
    QueueKey key(std::uint32_t slot) const { return {level, slot, deadline, sequence}; }

    void recycle() {
        batches.clear();
        rows_sent = 0;
        queued = dispatched = false;
    }
};

// At a backend, or (retry_sequence != 0) a fixed group that waits to be sent again.
struct BatchRecord {
    std::uint32_t model = 0;
    std::uint32_t backend = kNoBackend;
    std::uint32_t pin = kNoBackend;
    std::uint32_t rows = 0;   // as sent
    std::uint32_t live = 0;   // members that still wait for their answer
    std::uint32_t tries = 0;  // failed attempts before this one
    std::uint32_t avoid = kNoBackend;
    std::uint64_t signature = 0;
    std::uint64_t retry_sequence = 0;
    bool retried = false;  // sent again after a failure
    bool mergeable = true;
    Nanos dispatched_at = 0;
    Nanos started_at = kNever;  // when an instance was free for it; kNever: still staged
    std::vector<BatchMember> members;

    void recycle() {
        backend = pin = avoid = kNoBackend;
        rows = live = tries = 0;
        retry_sequence = 0;
        retried = false;
        started_at = kNever;
        members.clear();
    }
};

using Requests = SlotMap<RequestRecord>;
using Batches = SlotMap<BatchRecord>;

// A doubly linked list through the request records, in submission order.
struct RequestList {
    std::uint32_t first = kNoSlot;
    std::uint32_t last = kNoSlot;

    template <Links RequestRecord::*member>
    void append(Requests& requests, std::uint32_t slot) {
        requests[slot].*member = {last, kNoSlot};
        if (last == kNoSlot) {
            first = slot;
        } else {
            (requests[last].*member).next = slot;
        }
        last = slot;
    }

    template <Links RequestRecord::*member>
    void unlink(Requests& requests, std::uint32_t slot) {
        const Links links = requests[slot].*member;
        (links.previous == kNoSlot ? first : (requests[links.previous].*member).next) = links.next;
        (links.next == kNoSlot ? last : (requests[links.next].*member).previous) = links.previous;
    }
};

}  // namespace infersched::engine
