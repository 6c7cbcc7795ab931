// The scheduling engine: which requests to admit, which to run together, when, and on which
// backend.
//
// Sans-IO. Events come in by the methods of Engine, each with `now`; what must happen comes out as
// Actions, read and cleared by the caller after every step. The engine has no clock, socket, thread
// or Python object; equal events in equal order give equal actions, whatever the addresses of
// things.
//
//     submit ──▶ queue (model → priority level → signature, by deadline then arrival)
//                  │ a slot is free (late binding)
//                  ▼
//              batch former ──▶ kDispatch ──▶ complete / dispatch_failed ──▶ kAnswer
//
// The ledger holds at every moment: admitted = completed + expired + cancelled + failed + in
// flight. Requests and batches are named by handles; a stale handle is a no-op.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/time.h"
#include "engine/counters.h"
#include "engine/memory/status.h"

namespace infersched::engine {

// Models are numbered from 0; those from kCountersModelsMax on have no place on the counters page.
inline constexpr std::uint32_t kModelsMax = 65'536;

// (generation << 32 | slot); 0 names nothing.
using RequestHandle = std::uint64_t;
using BatchHandle = std::uint64_t;

inline constexpr std::uint32_t kNoBackend = 0xffffffff;

// The dynamic_batching block of a Triton model configuration (model_config.proto).
struct TritonQueuePolicy {
    bool delay_timed_out = false;    // TimeoutAction DELAY; false: REJECT
    Nanos timeout_ns = 0;            // default_timeout_microseconds; 0: none
    bool timeout_override = false;   // allow_timeout_override
    std::uint32_t requests_max = 0;  // max_queue_size; 0: unbounded
};

struct TritonBatching {
    bool dynamic = false;  // false: no dynamic_batching block, every request alone
    std::vector<std::uint32_t> preferred_rows;
    Nanos queue_delay_max_ns = 0;
    bool preserve_ordering = false;
    std::vector<TritonQueuePolicy> levels;  // of priority level 1, 2, ...; at least one
    std::uint32_t default_level = 1;
};

// What one priority level of a model asks for beyond the model's own settings.
struct LevelPolicy {
    Nanos slo_ns = 0;          // 0: the model's
    bool best_effort = false;  // no objective at all: never refused for being late, served last
    // The part of its requests that is to be in time before those of lower levels are; beyond it,
    // while those miss theirs, it is served as they are. 0: the model's, and beyond it, too.
    double attainment = 0;
};

struct ModelPolicy {
    bool in_use = false;
    bool merge = true;           // false: every request is dispatched alone
    std::uint32_t rows_max = 1;  // largest batch; larger requests are split into parts (merge only)
    std::vector<std::uint32_t>
        preferred_rows;  // sorted; stop at the largest one that can be filled
    std::vector<std::uint32_t> mandatory_rows;  // sorted; every batch is padded to one of these
    Nanos queue_delay_max_ns = 0;  // how long the oldest request may wait for more rows
    std::uint32_t priority_levels = 1;
    std::uint32_t default_priority = 1;  // 1 = highest
    Nanos slo_ns = 0;                    // 0: no objective
    std::vector<LevelPolicy> levels;     // of priority level 1, 2, ...; missing ones: the model's
    // The part of the requests that are to be in time: the margin over learned latencies.
    double attainment = 0.99;
    // true: batches are formed and requests admitted by learned latency, where requests have
    // deadlines (queue_delay_max_ns and preferred_rows are then not looked at). Without a deadline
    // or while the latency is unknown a batch goes as soon as a slot is free for it.
    bool load_aware = true;
    // What a request answered in time is worth against those of other models on shared executors
    // that have a value, too. 0: the model is not weighed.
    double value = 0;
    // A request below level 1 that has waited this long goes before all levels, the oldest first;
    // one batch in eight may be led so. 0: never.
    Nanos aging_ns = 0;
    std::uint64_t queue_requests_max = 10'000;
    std::uint64_t queue_bytes_max = 1ull << 30;
    Nanos queue_age_max_ns = 0;  // 0: none; else refuse while one of its level or above is older
    std::uint32_t staged_batches_max = 1;
    bool idempotent = true;
    bool cancellable = false;
    // > 0: not bound by instances. Requests go to the backend as they come, alone, this many at
    // once (sequence and decoupled models, whose backend schedules them itself): the fewest out
    // first. Nothing is merged, split or staged.
    std::uint32_t direct_max = 0;
    // A sequence is pinned to its backend from its start until its end or this long after its last
    // request was answered; 0: no sequences. Its state is lost when a request of it may have run
    // without a reply, when its placement is removed, and when its backend was unusable for a
    // second: what is queued and what comes within this time is answered kFailed / kSequenceLost,
    // up to a new start.
    Nanos sequence_idle_ns = 0;
    // false: new requests are refused with kUnloading, queued ones are served.
    bool admitting = true;
    // Batches are held until this many requests are queued, once after the model came into use
    // (Triton's TRITONSERVER_DELAY_SCHEDULER, for deterministic tests); 0: never.
    std::uint32_t hold_requests = 0;
    // `batching: triton`: act as Triton's dynamic batcher does. The fields above that have no
    // meaning there are ignored.
    std::shared_ptr<const TritonBatching> triton;
};

// Tenants that are told apart, tenant 0 included; further ones count as tenant 0.
inline constexpr std::size_t kTenantsMax = 1025;

// An executor group of its own for each model and backend: its instances.
inline constexpr std::uint32_t kOwnExecutors = 0xffffffff;

struct Placement {
    std::uint32_t backend = 0;
    std::uint32_t instances = 1;
    // Placements (of any model) that name the same group exclude each other: the group is one
    // executor, a GPU, and runs one batch at a time.
    std::uint32_t executor_group = kOwnExecutors;
    bool ready = false;  // false: gets nothing new (down, draining, not loaded there)
    // Those that the instances are on; which one takes a batch is the backend's choice: it has to
    // fit any of them. Empty: not known, device memory sets no limit.
    std::vector<std::uint32_t> devices;
    // The most instances that are on one of them; 0: as many on each.
    std::uint32_t device_instances = 0;
};

struct Request {
    std::uint64_t user = 0;  // the caller's own name of it, given back in actions
    std::uint32_t model = 0;
    std::uint32_t rows = 1;
    std::uint64_t signature = 0;  // requests of equal signature may share a batch
    std::uint64_t bytes = 0;
    // Of the tensors of a row; 0: those of the model's rows are all alike. Device memory that its
    // rows take is taken to go with them.
    std::uint64_t row_bytes = 0;
    std::uint64_t priority = 0;  // Triton's: 0, absent or too large = the model's default
    Nanos arrival = 0;
    // Where it could not be admitted before, its model had to be loaded first: since when it can.
    // The model's objective counts from there, and it makes no queue too old.
    Nanos admissible_at = 0;
    Nanos deadline =
        kNever;  // absolute; the engine applies the model's slo as well, the earliest wins
    bool mergeable = true;
    // Admitted whatever is predicted, if there is room: to find out whether a refusal was right.
    bool unconditional = false;
    // Not given up for others before its deadline: to find out whether that was right.
    bool kept = false;
    std::uint32_t pinned_backend = kNoBackend;
    // Requests of one sequence go to one backend, in the order of their admission. One is sent when
    // the reply to the one before has come, or at once when both came by the same ordered path
    // (client stream, named by a number; 0: none). They run at most once; a start goes to the
    // backend with the fewest sequences, or stays at its own when the sequence lives. A sequence
    // that is not known goes anywhere, and is pinned when a request of it was served there. The
    // pin of the sequence comes before pinned_backend.
    std::uint64_t sequence = 0;  // 0: none
    bool sequence_start = false;
    bool sequence_end = false;
    std::uint64_t path = 0;
    Nanos timeout_ns = 0;      // the `timeout` parameter, for TritonBatching only
    std::uint32_t tenant = 0;  // index into the weights of set_tenants
    // Room for what later parts attach.
    std::uint64_t labels = 0;
    std::uint32_t target = 0;
    std::uint32_t snapshot = 0;
};

struct Admission {
    RequestHandle handle = 0;  // 0: refused
    Reason reason = Reason::kNone;
    Nanos retry_after_ns = 0;           // a hint, 0 = none
    StatusCode code = StatusCode::kOk;  // other: what Triton's batcher gives (TritonBatching)
    // With kPredictedLate and kDeadlineInfeasible: the time to completion that was predicted (the
    // model's floor when idle), and what there was until the deadline.
    Nanos predicted_ns = 0;
    Nanos budget_ns = 0;
    // Where it was admitted, and with kDeadlineInfeasible: the earliest of the request's and of the
    // model's objective.
    Nanos deadline = kNever;
    // With kDeviceMemory: what the request takes, and what is free on the device of the most.
    std::uint64_t predicted_bytes = 0;
    std::uint64_t free_bytes = 0;
};

// One member of a batch: rows [row_begin, row_begin + rows) of the request.
struct BatchMember {
    RequestHandle request = 0;
    std::uint64_t user = 0;
    std::uint32_t row_begin = 0;
    std::uint32_t rows = 0;
};

enum class ActionKind : std::uint8_t {
    kDispatch,  // send `batch` to `backend`: members [member_begin, member_begin + member_count)
    kAnswer,    // answer request `user`: outcome, reason; ok when outcome is kCompleted
    kAbandon,   // nobody waits for `batch` any more and it may be reset at the backend now; its
                // slot is free and its handle stale, its reply may have come in the same turn
    kWake,      // call tick() at `at` (replaces earlier wakes); kNever = no wake is needed
};

struct Action {
    ActionKind kind;
    Outcome outcome;
    Reason reason;
    StatusCode code;  // kAnswer of a failed request: the backend's code; of one that expired:
                      // kUnavailable by a TritonQueuePolicy
    std::uint32_t model;
    std::uint32_t backend;
    RequestHandle request;  // kAnswer
    std::uint64_t user;     // kAnswer
    BatchHandle batch;      // kDispatch, kAbandon; kAnswer: the batch whose end answered it, or 0
    std::uint32_t member_begin;
    std::uint32_t member_count;
    std::uint32_t rows;         // kDispatch: sum of the members' rows
    std::uint32_t rows_padded;  // kDispatch: rows to send (mandatory sizes), else = rows
    bool memory_limited;        // kDispatch: device memory kept the batch smaller
    Nanos at;         // kWake; kDispatch: the batch's deadline (latest of its members', kNever);
                      // kAnswer: the request's
    Nanos queued_ns;  // kAnswer: time from arrival to now, for expired requests
    Nanos retry_after_ns;  // kAnswer of what the load made late in the queue: as Admission's
    // kAnswer with kDeviceMemory.
    std::uint64_t predicted_bytes;
    std::uint64_t free_bytes;
};

enum class FailureKind : std::uint8_t {
    kNothingRan,    // connect failure, "not accepting", backend leaving: go elsewhere, no budget
                    // needed
    kConnection,    // lost while it may have run: go elsewhere only when the model is idempotent
    kRejected,      // what the backend answered: bisect when merged and allowed
    kUnsplittable,  // the reply cannot be cut: every member runs alone, merging is off for the
                    // model
    kFinal,         // a status that another try would not change: every member gets it
    kGivenUp,       // the backend answered at the deadline while the execution goes on: as kFinal,
                    // but the slot stays taken until the batch's predicted end
    kOutOfMemory,   // of the device: smaller batches from now on, this one again in halves
    kUnavailable,   // answered so, by the model or by what stands before a backend that is gone: to
                    // another backend once, where there is one and the model is idempotent; else,
                    // and then, as kRejected
    kReset,         // its stream alone was, for what a member is or what the backend has: once
                    // more, elsewhere where that is possible, if the model is idempotent; else,
                    // and then, as kRejected. The state of a sequence is lost with it.
};

// The largest size that ModelStats::batch_sizes tells apart; larger batches are counted there.
inline constexpr std::uint32_t kStatsRowsMax = 4096;

// What ModelStatistics shows, since the engine was made (or the model was removed).
struct BatchSizeStats {
    std::uint32_t rows = 0;  // as dispatched, without padding
    std::uint64_t batches = 0;
    std::uint64_t backend_ns = 0;  // start to reply, summed up
};

struct ModelStats {
    std::uint64_t rows = 0;     // inferences: rows of completed requests
    std::uint64_t batches = 0;  // executions that were answered without an error
    std::uint64_t completed = 0, completed_ns = 0;
    std::uint64_t failed = 0, failed_ns = 0;      // failed, expired after dispatch
    std::uint64_t rejected = 0, rejected_ns = 0;  // refused (in no time), expired in the queue
    std::uint64_t cancelled = 0, cancelled_ns = 0;
    // Summed up over completed requests: until the start of the batch that answered it (its last
    // part's), and from there to the reply. Every member pays the whole time of its batch.
    std::uint64_t queue_ns = 0;
    std::uint64_t backend_ns = 0;
    Nanos last_answer = 0;
    std::vector<BatchSizeStats> batch_sizes;  // those that occurred, by rows
};

struct QueueStatus {
    std::uint64_t requests, rows, bytes;
    Nanos oldest_arrival;  // kNever when empty
    std::uint32_t inflight_batches;
    bool merging;
};

// Times that cannot be, which nothing is learned from: how many there were.
struct IgnoredTimes {
    std::uint64_t backward = 0;  // of batches that ended before they began: the clock went back
    std::uint64_t zero = 0;      // of batches that took none
    std::uint64_t too_long = 0;  // of batches that took more than an hour
    std::uint64_t prior = 0;     // that were said before anything ran
};

// What has been learned of how long batches of a model take on a backend.
struct LatencyStatus {
    bool known = false;
    std::uint64_t observations = 0;  // of this backend; the rest may be of those like it, too
    Nanos alpha_ns = 0;              // of a row, and of a batch; 0: one size tells neither
    Nanos beta_ns = 0;
    double margin = 1.0;            // by which deadlines are kept beyond the expected time
    double error_mean = 0.0;        // mean of observed/expected - 1 of late
    double beyond_margin = 0.0;     // part of the observations beyond expected * margin
    std::uint32_t rows_target = 0;  // the batch size that the present load asks for
    double rate_per_s = 0.0;        // of requests, as metered
    IgnoredTimes ignored;
    std::vector<BatchSizeStats> sizes;  // expected time in backend_ns, observations in batches
};

class Engine {
  public:
    // `page` outlives the engine; it is initialised here: all zero (fresh memory) or an earlier
    // page.
    explicit Engine(CountersPage* page);
    ~Engine();

    // -- configuration ---------------------------------------------------------------------------
    // Placements name at most one entry per backend. Removing a model (in_use false) fails its
    // queued requests with kUnavailable / kNoBackend; batches in flight are still waited for.
    void configure_model(std::uint32_t model, const ModelPolicy& policy,
                         const std::vector<Placement>& placements, Nanos now);
    // Whether the backend can be sent to at all (a connection is open and it is in rotation).
    // Batches in flight at a backend that went away are told by dispatch_failed, each, by the
    // caller.
    void set_backend(std::uint32_t backend, bool available, Nanos now);
    // Tenants' shares of device time where requests compete; index 0 is everybody else's. Weights
    // that are not positive count as 1.
    void set_tenants(const std::vector<double>& weights);
    // What is known of the latency before a batch has run: a saved profile, Triton's batch_stats.
    // Observations replace it. Nonsense is ignored; false then.
    bool prime_latency(std::uint32_t model, std::uint32_t backend, std::uint32_t rows,
                       Nanos mean_ns, std::uint64_t count);
    // A reading of a device, in the order of measuring. Takes effect at the next step.
    void set_device(std::uint32_t device, const DeviceMemory& memory, Nanos now);
    // What is known of a model's need before it is learned; `fixed`: and instead of learning it.
    // `rows_high`: the largest batch that every instance there has room for already. Nonsense is
    // ignored; false then.
    bool prime_memory(std::uint32_t model, std::uint32_t device, double base_bytes,
                      double bytes_per_row, std::uint32_t rows_high, bool fixed);
    // From now on every submit is refused with kDraining.
    void set_draining(bool draining);

    // -- requests --------------------------------------------------------------------------------
    // A refused request leaves no trace but its counters. Actions (a dispatch) come with step().
    // A model whose last backend was lost admits for another second and fails what is queued after
    // five (kUnavailable / kNoBackend); one that never had a backend refuses.
    Admission submit(const Request& request, Nanos now);
    // The client went away: no answer is wanted, capacity is freed. kAnswer(kCancelled) is emitted
    // all the same.
    void cancel(RequestHandle request, Nanos now);
    // Drain's end: answers everything that is left with kFailed / kDraining.
    void fail_all(Reason reason, Nanos now);

    // -- batches ---------------------------------------------------------------------------------
    // The reply has come and can be split. Members are answered (kCompleted) once all their parts
    // are there.
    void complete(BatchHandle batch, Nanos now);
    // What may run again goes again before other work: the same members as a fixed group, elsewhere
    // where that is possible, eight times at most; a rejected one in halves. A backend that ran
    // nothing rests for 10 ms, doubled with every failure in a row up to 1 s, or until set_backend
    // makes it available; so does one that was unavailable or reset streams three times in a row,
    // of batches sent for the first time, while there was another. Merging that kUnsplittable ended
    // comes back with a policy that batches differently.
    void dispatch_failed(BatchHandle batch, FailureKind kind, StatusCode code, Nanos now);
    // What is dispatched from now on takes another path than this batch did, of whatever path it
    // says to be: what follows in its sequence waits for the answer.
    void end_path(BatchHandle batch, Nanos now);

    // -- time ------------------------------------------------------------------------------------
    // Expires deadlines, forms batches, dispatches. Call once per loop turn after the turn's events
    // and at every kWake.
    void step(Nanos now);
    // Whether events have come since the last step: one more is due, whatever the last kWake said.
    bool needs_step() const;

    // Actions since the last clear_actions(), in order; members of dispatches in members().
    const std::vector<Action>& actions() const;
    const std::vector<BatchMember>& members() const;
    void clear_actions();

    // -- what is seen from outside ---------------------------------------------------------------
    QueueStatus queue_status(std::uint32_t model) const;
    ModelStats model_stats(std::uint32_t model) const;
    LatencyStatus latency_status(std::uint32_t model, std::uint32_t backend) const;
    MemoryStatus memory_status(std::uint32_t model, std::uint32_t device) const;
    DeviceStatus device_status(std::uint32_t device) const;
    std::uint64_t requests_inflight() const;  // admitted and not answered
    // Aborts when a truth of the design does not hold (tests, debug builds): ledger, slots, heaps.
    void check_invariants() const;
    // The whole state as bytes, and back: an engine loaded from save() acts exactly as the saved
    // one.
    std::vector<std::uint8_t> save() const;
    bool load(const std::vector<std::uint8_t>& state);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace infersched::engine
