// The batch former run ahead over what is queued: whether it has a place for one more request.
//
// A forecast from sums says how much work is before a request, not whether its last batch has a row
// to spare, or which requests before it will be given up. So what a sum would refuse is looked at
// closely: batches are formed one after the other as the executors become free, by the rules of
// batching/load_aware.cc, from what is queued now. What is not known yet is tried out: later
// requests may take the place of this one or that of those before it, and the next control tick may
// ask for larger or smaller batches. Late is what is late whatever of that happens. Longer queues
// than those of a bounded look are left to the sums.
#pragma once

#include <cstdint>
#include <vector>

#include "base/time.h"
#include "engine/admission/held_batches.h"
#include "engine/batching/blocking.h"
#include "engine/batching/rates.h"
#include "engine/batching/reserve.h"
#include "engine/engine.h"
#include "engine/latency/model.h"
#include "engine/records.h"

namespace infersched::engine {

class Lookahead {
  public:
    static constexpr std::size_t kRowsMax = 1024;
    static constexpr std::size_t kGroupsMax = 64;
    static constexpr std::size_t kModelsMax = 256;  // that share the executors
    static constexpr std::uint32_t kBatchesMax = 256;
    static constexpr std::int64_t kEffortMax = 16'384;

    enum class Verdict : std::uint8_t {
        kInTime,
        kLate,
        kUnknown,  // more batches, or more effort, than it looks at
    };

    // Requests that may share batches. A reference into the engine: valid during one event.
    struct Group {
        const ModelPolicy* policy = nullptr;
        const LatencyModel* latency = nullptr;
        std::uint32_t target = 1;
        std::uint32_t rows_trusted = 1;
        std::uint32_t rows_single = 0xffffffff;  // of a part of a request
        bool merges = true;
        Reserve reserve;
        Nanos gather_ns = 0;
        Nanos last_arrival = 0;
        RateMeter rate;          // of rows that come
        std::uint32_t came = 0;  // of those, the ones that are in batches
        // [next, end) of the requests are left, of `rows` rows together.
        std::size_t next = 0;
        std::size_t end = 0;
        std::uint64_t rows = 0;
        std::uint64_t filling = 0;  // of these: what only fills batches of others
        QueueKey key;               // as it is ready now, or would be
        Nanos planned_ns = 0;       // the bound of its batch
        bool waits = false;         // for more rows
    };
    struct Waiting {
        QueueKey key;
        Nanos arrival = 0;
        std::uint32_t rows = 0;
        std::uint32_t target = 1;  // of the batches that its level asks for
        bool asked_for = false;    // the request of which the question is
    };

    // `tick_at`: when the sizes that the load asks for are found anew.
    // `behind`: the levels that have less in time than they ask for.
    void start(Nanos now, Nanos tick_at, std::uint32_t slots, Levels behind);
    void add_executor(Nanos free_at) { free_.push_back(free_at); }
    // The batches that run and left executors to others.
    void add_held(const HeldBatches& held) { held_ = held; }
    // A group without requests; they are added in their order.
    Group& add_group();
    void add(const Waiting& request);
    bool full() const { return waiting_.size() >= kRowsMax || groups_.size() >= kGroupsMax; }
    // What is added is used up.
    Verdict run();
    // After run(), of a request that is late: after what time the same one would be in time if
    // nothing else came until then. 0: not found.
    Nanos retry_after();
    // Of a request that is late: the deadline with which it would have been in time, about.
    Nanos fits_from() const { return fits_from_; }
    // What it took since start(), at most kEffortMax and one batch: a request read is 1.
    std::int64_t effort() const { return effort_; }

  private:
    // Of requests that come: as many as usually, or only those that come almost certainly; and
    // whether they join batches of those that wait now.
    struct Coming {
        bool usual = false;
        bool join = false;
    };
    static constexpr Coming kComings[] = {
        {false, false}, {true, true}, {true, false}, {false, true}};
    enum class State : std::uint8_t { kReady, kWaiting, kEmpty };

    void restore();
    Verdict run(Coming coming);
    bool fits_after(Nanos wait_ns, Nanos& late_ns);
    void comes();
    std::uint32_t lead_rows(const Group& group) const;
    std::uint32_t cap(const Group& group) const;
    std::uint32_t target(std::uint32_t known, Nanos at) const;
    std::uint32_t coming(const Group& group, Nanos at) const;
    std::uint32_t window_rows(const Group& group, std::uint32_t wanted, Nanos at);
    bool give_up_late(Group& group, Nanos at);
    State look(Group& group, Nanos at, Nanos& ready_at);
    Nanos left_from(const Group& group, Nanos at);
    Group* urgent_wait(Group& best, Nanos at);
    Nanos form(Group& group, Nanos at);

    Nanos now_ = 0;
    std::uint32_t slots_ = 0;
    Levels behind_ = 0;
    std::vector<Nanos> free_;  // executors, by when they are free
    HeldBatches held_;
    std::vector<Group> groups_;
    std::vector<Waiting> waiting_;
    // As they were added, for further runs.
    std::vector<Nanos> all_free_;
    HeldBatches all_held_;
    std::vector<Group> all_groups_;
    std::vector<Waiting> all_waiting_;
    Coming coming_;
    int shift_ = 0;  // of the targets, from tick_at_ on
    Nanos tick_at_ = kNever;
    Nanos ended_at_ = 0;       // where the last run came to
    bool reached_ = false;     // the request is in a batch
    Nanos comes_at_ = kNever;  // the request; kNever: it has
    Nanos fits_from_ = 0;
    std::int64_t effort_ = 0;
};

}  // namespace infersched::engine
