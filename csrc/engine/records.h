// What the engine keeps per request and per batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/admission/backlog.h"
#include "engine/core_limits.h"
#include "engine/engine.h"
#include "engine/memory/taking.h"
#include "engine/queues/queue_order.h"
#include "engine/slot_map.h"

namespace infersched::engine {

struct Links {
    std::uint32_t previous = kNoSlot;
    std::uint32_t next = kNoSlot;
};

// The batches that carry rows of a request, by slot: one, unless it goes in parts.
class Carriers {
  public:
    bool empty() const { return first_ == kNoSlot; }
    std::size_t size() const { return empty() ? 0 : 1 + more_.size(); }
    std::uint32_t operator[](std::size_t i) const { return i == 0 ? first_ : more_[i - 1]; }
    std::uint32_t back() const { return more_.empty() ? first_ : more_.back(); }
    void push_back(std::uint32_t batch) {
        if (empty()) {
            first_ = batch;
        } else {
            more_.push_back(batch);
        }
    }
    void remove(std::uint32_t batch) {
        if (first_ != batch) {
            more_.erase(std::find(more_.begin(), more_.end(), batch));
        } else if (more_.empty()) {
            first_ = kNoSlot;
        } else {
            first_ = more_.front();
            more_.erase(more_.begin());
        }
    }
    void clear() {
        first_ = kNoSlot;
        more_.clear();
    }

    template <class Archive>
    void archive(Archive& archive) {
        archive(first_);
        archive(more_);
        archive.require(!empty() || more_.empty());
    }

  private:
    std::uint32_t first_ = kNoSlot;
    std::vector<std::uint32_t> more_;
};

// What a dispatch needs of it comes first: in a long queue every line of it is a cache miss.
struct RequestRecord {
    std::uint64_t user = 0;
    std::uint64_t sequence = 0;  // of its admission
    std::uint64_t bytes = 0;
    Nanos arrival = 0;
    Nanos deadline = kNever;
    std::uint32_t model = 0;
    std::uint32_t rows = 0;
    std::uint32_t rows_sent = 0;    // [0, rows_sent) are in batches or done
    std::uint32_t level = 1;        // served at; 1 = highest; with kBestEffortBit
    std::uint32_t asked_level = 1;  // of its priority; where it is in time beyond its part, higher
    std::uint32_t tenant = 0;
    std::uint32_t group = kNoSlot;
    BacklogPlace backlog;        // while in a group
    Links in_group, in_model;    // submission order of what is queued
    bool queued = false;         // rows are left in its queue
    bool dispatched = false;     // some rows have been sent to a backend
    bool sequential = false;     // of a sequence: has a SequenceMember
    bool kept = false;           // not given up before its deadline
    bool aged = false;           // goes before all levels
    bool admitted_late = false;  // its model had to be loaded first
    bool over_share = false;     // of its tenant: behind those of its level that are not
    bool held = false;           // of a sequence: queued behind others, in no group
    // Of a model with TritonBatching. `in_levels`: queued in its level, linked there and in no
    // group.
    bool in_levels = false;
    bool delayed = false;  // timed out, behind the others of its level
    // Bytes of a row against ModelState::row_bytes; times any number of rows an exact double.
    float row_size = 1;
    Carriers batches;
    Nanos share_ns = 0;  // device time that its tenant is charged
    std::uint64_t signature = 0;
    Nanos enqueued_at = 0;
    Nanos timeout_at = kNever;
    bool mergeable = true;
    Links in_place;  // of its level, where the age of what is queued is bounded

    std::uint32_t rows_left() const { return rows - rows_sent; }
    bool grouped() const { return queued && !held && !in_levels; }
    // Within a level, what is over the share of its tenant makes a level below.
    std::uint32_t queue_level() const { return aged ? 0 : level << 1 | (over_share ? 1u : 0u); }
    QueueKey key(std::uint32_t slot) const { return {queue_level(), slot, deadline, sequence}; }

    void recycle() {
        batches.clear();
        rows_sent = 0;
        queued = dispatched = aged = sequential = held = in_levels = delayed = false;
    }
};

// At a backend, or (retry_sequence != 0) a fixed group that waits to be sent again, or (in
// TritonQueue::formed) one that waits for an instance.
struct BatchRecord {
    std::uint32_t model = 0;
    std::uint32_t backend = kNoBackend;
    std::uint32_t pin = kNoBackend;
    std::uint32_t rows = 0;   // as sent; before that those of the live members
    std::uint32_t live = 0;   // members that still wait for their answer
    std::uint32_t tries = 0;  // failed attempts before this one
    std::uint32_t avoid = kNoBackend;
    std::uint32_t executor = kNoSlot;  // the shared one that runs it
    std::uint32_t reserve = 0;         // executors that its group left to others then
    std::uint64_t signature = 0;
    std::uint64_t retry_sequence = 0;
    bool retried = false;         // sent again after a failure
    bool half = false;            // of one that ran out of memory
    bool memory_limited = false;  // device memory kept it smaller
    bool mergeable = true;
    bool formed = false;  // waits in TritonQueue::formed
    bool sealed = false;  // no other formed batch is joined to it
    bool grows = false;   // larger than those before it: may take more device memory
    MemoryGrowth growth;  // if it does
    float row_size = 1;   // of its members: RequestRecord::row_size
    // Of halves of one that may have been too large: where it ran, and the cap there before.
    // cap_before 0: none of those.
    std::uint32_t cut_backend = kNoBackend;
    double cap_before = 0;
    std::uint32_t memory_tries = 0;  // failed attempts for memory, of what cannot be cut
    bool alone = false;              // is to have its devices for itself, or had them
    std::uint32_t others_out = 0;    // on the devices that are held free for it
    Nanos held_since = kNever;       // they are; kNever: they are not
    Nanos dispatched_at = 0;
    Nanos ends_at = kNever;         // once started: when its reply is expected
    Nanos started_at = kNever;      // when an instance was free for it; kNever: still staged
    std::uint32_t place = kNoSlot;  // of SharedPlaces, once started
    std::uint64_t ran_before = 0;   // SharedPlaces::ran_ns then
    // Sent before an instance was free (execution/early.cc): the batch whose instance it was
    // expected to take, and since when one is free. 0: not early.
    BatchHandle follows = 0;
    Nanos freed_at = kNever;
    // As what it is counted in the backlog, if it is: not what an early one follows, which is
    // counted in its place.
    bool counted = false;
    bool followed = false;
    bool runs_on = false;  // beyond its deadline, to show how long it takes
    RunningBatch counted_as;
    // Answered while its execution goes on: when its slot is free again. Its handle is stale.
    Nanos release_at = kNever;
    std::vector<BatchMember> members;
    std::uint32_t taken = 0;  // members that left their queue, while it is formed

    bool early() const { return follows != 0; }
    bool runs() const { return backend != kNoBackend && started_at != kNever; }
    Nanos hold_end() const { return add_saturating(held_since, kHoldMaxNs); }
    // It has not got its devices for itself: the next attempt is the last.
    void go_beside() {
        if (!alone) return;
        alone = false;
        memory_tries = kMemoryTriesMax - 1;
    }

    void recycle() {
        backend = pin = avoid = kNoBackend;
        executor = place = kNoSlot;
        cut_backend = kNoBackend;
        rows = live = tries = taken = memory_tries = others_out = reserve = 0;
        retry_sequence = 0;
        row_size = 1;
        cap_before = 0;
        retried = half = memory_limited = alone = formed = sealed = grows = false;
        counted = followed = false;
        follows = 0;
        started_at = ends_at = freed_at = release_at = held_since = kNever;
        members.clear();
    }
};

// How a request ends.
struct Ending {
    Outcome outcome;
    Reason reason;
    StatusCode code;
    BatchHandle batch = 0;
    std::uint32_t backend = kNoBackend;
    std::uint64_t predicted_bytes = 0;
    std::uint64_t free_bytes = 0;
};

// Requests that one batch completed.
struct Completions {
    Nanos requests = 0;
    Nanos waited_ns = 0;  // arrival to answer, summed up
    std::uint64_t rows = 0;
};

// A doubly linked list through the records of a slot map, in the order of appending.
template <class Record>
struct SlotList {
    std::uint32_t first = kNoSlot;
    std::uint32_t last = kNoSlot;

    template <Links Record::*member>
    void append(SlotMap<Record>& records, std::uint32_t slot) {
        records[slot].*member = {last, kNoSlot};
        (last == kNoSlot ? first : (records[last].*member).next) = slot;
        last = slot;
    }

    template <Links Record::*member>
    void prepend(SlotMap<Record>& records, std::uint32_t slot) {
        records[slot].*member = {kNoSlot, first};
        (first == kNoSlot ? last : (records[first].*member).previous) = slot;
        first = slot;
    }

    template <Links Record::*member>
    void unlink(SlotMap<Record>& records, std::uint32_t slot) {
        const Links links = records[slot].*member;
        (links.previous == kNoSlot ? first : (records[links.previous].*member).next) = links.next;
        (links.next == kNoSlot ? last : (records[links.next].*member).previous) = links.previous;
    }

    bool empty() const { return first == kNoSlot; }
};
using RequestList = SlotList<RequestRecord>;

// What a request of a sequence has besides, by its slot: apart, to keep the others small.
struct SequenceMember {
    std::uint64_t path = 0;
    std::uint32_t sequence = kNoSlot;
    std::uint32_t pin = kNoBackend;
    bool start = false;
    bool end = false;
};

// A sequence that has requests, or a backend that keeps its state, or lost its state.
//
// At most one request of it, the lead, is in a group; those behind it are held here, so that
// neither priority nor deadline changes their order.
struct SequenceRecord {
    std::uint64_t key = 0;     // Request::sequence
    std::uint64_t number = 0;  // the admission of the request that made it
    std::uint32_t model = 0;
    std::uint32_t backend = kNoBackend;  // to which it is pinned
    std::uint32_t lead = kNoSlot;
    std::uint32_t again = kNoSlot;  // the request that waits to be sent again
    std::uint32_t inflight = 0;     // sent and not answered, `again` included
    std::uint64_t path = 0;         // of those in flight; 0: nothing may follow before the answer
    bool started = false;           // the backend knows it
    bool ended = false;             // its end was sent
    bool lost = false;              // the state is gone: nothing but a start is sent
    bool doomed = false;            // in ModelState::doomed
    RequestList held;
    Links in_placement;

    bool idle() const { return inflight == 0 && lead == kNoSlot && held.empty(); }
    void recycle() { *this = SequenceRecord(); }
};

using Requests = SlotMap<RequestRecord>;
using Batches = SlotMap<BatchRecord>;
using Sequences = SlotMap<SequenceRecord>;
using SequenceList = SlotList<SequenceRecord>;

}  // namespace infersched::engine
