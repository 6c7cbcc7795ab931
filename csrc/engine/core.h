// The steps that change the state of the engine (core_state.h); engine.h is its public face.
//
//     admission/   submit, cancel, expiry; what is foreseen, what is refused, and when it may
//                  come again; class_shares.cc: fairness of models
//     queues/      where a request waits, in which order, and when its group is ready; sequences,
//                  tenants, priorities, aging
//     batching/    how large batches should be (targets.cc), which are formed (load_aware.cc), and
//                  for how long low levels may hold an executor (blocking.cc)
//     triton/      models whose requests are batched as Triton's batcher does
//     execution/   backends and executors, which batch goes where, what replies and failures mean
//     latency/     how long batches take;  memory/  what they need of a device, and what there is
//     configure.cc policies, placements, backends; ledger.cc: counters; persist.cc: save and load
//     invariants.cc the truths that must hold
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/admission/arrival.h"
#include "engine/batching/batch_former.h"
#include "engine/core_limits.h"
#include "engine/core_state.h"
#include "engine/execution/placements.h"
#include "engine/fetch_ahead.h"
#include "engine/triton/queue.h"

namespace infersched::engine {

class Core : private CoreState {
  public:
    explicit Core(CountersPage* page);

    // admission/admission.cc
    Admission submit(const Request& request, Nanos now);
    void cancel(RequestHandle handle, Nanos now);
    void fail_all(Reason reason, Nanos now);
    void step(Nanos now);

    // configure.cc
    void configure_model(std::uint32_t model, const ModelPolicy& policy,
                         const std::vector<Placement>& placements, Nanos now);
    void set_backend(std::uint32_t backend, bool available, Nanos now);
    void set_tenants(const std::vector<double>& weights);
    bool draining = false;

    // execution/replies.cc
    void complete(BatchHandle handle, Nanos now);
    void dispatch_failed(BatchHandle handle, FailureKind kind, StatusCode code, Nanos now);

    // queues/sequences.cc
    void end_path(BatchHandle handle, Nanos now);

    // invariants.cc, persist.cc
    void check_invariants() const;
    template <class Archive>
    void archive(Archive& archive);

    // ledger.cc
    QueueStatus queue_status(std::uint32_t index) const;
    ModelStats model_stats(std::uint32_t index) const;
    bool prime_latency(std::uint32_t model, std::uint32_t backend, std::uint32_t rows,
                       Nanos mean_ns, std::uint64_t count);
    LatencyStatus latency_status(std::uint32_t index, std::uint32_t backend) const;

    // memory/device_limits.cc
    void set_device(std::uint32_t device, const DeviceMemory& memory, Nanos now);
    bool prime_memory(std::uint32_t model, std::uint32_t device, double base_bytes,
                      double bytes_per_row, std::uint32_t rows_high, bool fixed);
    MemoryStatus memory_status(std::uint32_t model, std::uint32_t device) const;
    DeviceStatus device_status(std::uint32_t device) const;
    std::uint64_t requests_inflight() const { return requests_.size(); }
    bool needs_step() const { return !dirty_.empty(); }

    std::vector<Action> actions;
    std::vector<BatchMember> members;

  private:
    // admission/admission.cc
    Arrival arrival_of(const ModelState& model, const Request& request, Nanos now) const;
    Reason refusal(const ModelState& model, const Request& request, const Arrival& arrival,
                   Nanos now);
    Admission refuse(ModelState& model, const Arrival& asked, std::uint32_t index, Reason reason);
    void finish(std::uint32_t slot, const Ending& ending, Nanos now);
    void leave_batches(std::uint32_t slot, Nanos now);
    void watch_clock(Nanos now);
    void expire(Nanos now);
    void expire_sequences(Nanos now);
    void mark_dirty(std::uint32_t model);
    void emit_wake(Nanos now);

    // admission/feasibility.cc; admission/retry_times.cc: retry_full, retry_late
    Backlog* backlog_of(const ModelState& model);
    void count_in(ModelState& model, Group& group, std::uint32_t slot, Nanos now);
    void count_rows_out(Group& group, const RequestRecord& request, std::uint32_t rows);
    void count_out(ModelState& model, Group& group, const RequestRecord& request);
    Nanos expected_ns(const BatchRecord& batch);
    void rebuild_backlogs(Nanos now);
    Nanos foreseen_end(const ModelState& model, const Arrival& arrival, std::uint32_t rows,
                       Nanos now) const;
    bool list_ahead(const ModelState& model, const Group& group, Lookahead::Waiting* asked);
    bool list_others_ahead(const Component& component, const Group& own);
    bool surely_late(ModelState& model, const Arrival& arrival, std::uint32_t rows, Nanos now);
    Forecast foresee(ModelState& model, const Request& request, const Arrival& arrival, Nanos now);
    Admission refuse_foreseen(ModelState& model, const Request& request, const Arrival& arrival,
                              const Forecast& forecast, Nanos now);
    bool probes(ModelState& model, Nanos now) const;
    bool probes_size(ModelState& model, std::uint32_t rows, Nanos predicted_ns, Nanos now) const;
    void count_objective(ModelState& model, const RequestRecord& request, bool answered,
                         bool in_time, Nanos now);
    Nanos retry_full(const ModelState& model, const Request& request, const Arrival& arrival,
                     Nanos now) const;
    Nanos retry_late(const ModelState& model, const Arrival& arrival, std::uint32_t rows, Nanos end,
                     Nanos now) const;
    Nanos retry_given_up(const RequestRecord& request, Nanos now) const;

    // queues/tenancy.cc
    FairShares* shares_of(const ModelState& model);
    void miss_share(const ModelState& model, std::uint32_t tenant, std::uint32_t level,
                    Nanos budget_ns, Nanos work_ns, Nanos now);
    double weight_of(std::uint32_t tenant) const;
    void weigh(ModelState& model, const Request& request, Arrival& arrival, Nanos now);
    bool over_share_of_queue(const ModelState& model, const Arrival& arrival, Nanos now);
    void charge_batch(const ModelState& model, const BatchRecord& batch);

    // queues/grouping.cc
    void enqueue(ModelState& model, std::uint32_t slot, Nanos now);
    void list_queued(ModelState& model, std::uint32_t slot);
    void join_group(ModelState& model, std::uint32_t slot, Nanos now);
    void leave_group(std::uint32_t slot, Nanos now);
    void unqueue(std::uint32_t slot, Nanos now);
    void unlist(ModelState& model, std::uint32_t slot);
    void take(ModelState& model, Group& group, std::uint32_t slot, std::uint32_t rows);
    void time_alone(std::uint32_t slot);
    void time_inserted(Group& group, const QueueKey& key);
    void time_firsts(Group& group);
    void refresh(ModelState& model, std::uint32_t group, Nanos now);
    void unindex(ModelState& model, std::uint32_t group);
    void refresh_all(ModelState& model, Nanos now);
    Nanos ready_time(const ModelState& model, const Group& group) const;
    void ripen(ModelState& model, Nanos now);
    bool merges(const ModelState& model, const Group& group, Nanos now) const;

    // queues/aging.cc
    Nanos comes_of_age(ModelState& model, Nanos now);
    void list_aged(ModelState& model, std::uint32_t index, Nanos now);
    void age(std::uint32_t index, Nanos now);
    void make_first(ModelState& model, std::uint32_t slot, Nanos now);
    Nanos aging_moment(const ModelState& model, Nanos now) const;

    // queues/sequences.cc
    bool known_sequence(const ModelState& model, const Request& request) const;
    void join_sequence(std::uint32_t slot, const Request& request, Nanos now);
    void sequence_sent(std::uint32_t batch, PlacementState& placement, Nanos now);
    void sequence_answered(std::uint32_t slot, bool dispatched, bool completed, Nanos now);
    void sequence_failed(ModelState& model, const BatchRecord& failed, FailureKind kind,
                         const Ending& ending, Nanos now);
    void advance(std::uint32_t sequence, Nanos now);
    void step_back(std::uint32_t sequence, Nanos now);
    void pin(std::uint32_t sequence, PlacementState& placement);
    void unpin(std::uint32_t sequence);
    void lose(std::uint32_t sequence, Nanos now);
    void doom(std::uint32_t sequence);
    bool first_is_lost(const SequenceRecord& sequence) const;
    void fail_doomed(ModelState& model, Nanos now);
    void lose_unserved(ModelState& model, Nanos now);
    void lose_all(PlacementState& placement, Nanos now);
    void forget_all(ModelState& model, Nanos now);
    void forget(std::uint32_t sequence);

    // execution/dispatch.cc
    bool usable(const PlacementState& placement) const;
    bool slot_free(const PlacementState& placement) const;
    Nanos stage_moment(const ModelState& model, const PlacementState& placement) const;
    Departure departure_to(const ModelState& model, const PlacementState& placement,
                           const Load& load, Nanos now) const;
    void run_model(std::uint32_t index, Nanos now);
    void offer_work(std::uint32_t index, Nanos now);
    void run_own(ModelState& model, Nanos now);
    bool dispatch_retry(ModelState& model, Nanos now);
    bool dispatch_next(ModelState& model, Nanos now);
    void send_retry(ModelState& model, Pool& pool, const Choice& choice, Nanos now);
    void send_next(ModelState& model, Pool& pool, const Choice& choice, Nanos now);
    Choice choose(ModelState& model, const Pool& pool, const Load& load, Nanos now);
    Choice choose_for_group(ModelState& model, const Pool& pool, Executors executors, Nanos now);
    Choice choose_for_retry(ModelState& model, const Pool& pool, Executors executors, Nanos now);
    bool splits(const ModelState& model, const Group& group) const;
    std::uint32_t batch_limit(const ModelState& model, const Group& group, bool merging,
                              RowsAllowed allowed) const;
    void form(ModelState& model, std::uint32_t group, std::uint32_t batch,
              const PlacementState& placement, Nanos now);
    FetchAhead fetch_ahead(const Group& group) const;
    void take_members(ModelState& model, std::uint32_t index, std::uint32_t batch, Nanos now);
    std::uint32_t rows_sent(const ModelState& model, const BatchRecord& batch) const;
    void join_batch(std::uint32_t batch, std::uint32_t request, std::uint32_t rows);
    void mark_dispatched(std::uint32_t request, Nanos now);
    void drop_stale(BatchRecord& batch) const;
    void send(ModelState& model, std::uint32_t batch, const Choice& choice, Nanos now);
    Nanos next_moment(ModelState& model, Nanos now);

    // execution/early.cc
    std::uint32_t first_to_end(const PlacementState& placement) const;
    Departure early_departure(const ModelState& model, const PlacementState& placement,
                              const Group* group, Nanos now) const;
    static bool overtakes(const ModelState& model, const Pool& pool,
                          const PlacementState& placement);
    Nanos starts_at(const Choice& choice, Nanos now) const;
    void note_head_start(BatchRecord& batch, const Choice& choice, Nanos now);
    void follow(BatchRecord& batch, std::uint32_t before, Nanos now);
    void unfollow(const BatchRecord& batch);
    void follow_another(PlacementState& placement, BatchHandle left, Nanos now);
    void note_started(BatchRecord& batch, Nanos now);
    void note_left(BatchRecord& batch);
    void count_running(BatchRecord& batch, Nanos free_at, Nanos overdue_at);
    void uncount_running(BatchRecord& batch);
    void learn_head_start(PlacementState& placement, const BatchRecord& batch, Nanos now) const;

    // batching/load_aware.cc, latency/sharing.cc
    bool planned(const ModelState& model, const Group& group) const;
    std::uint32_t lead_rows(const ModelState& model, const Group& group, std::uint32_t slot) const;
    std::uint32_t rows_cap(const ModelState& model, const Group& group, std::uint32_t lead,
                           Nanos now) const;
    void mark_stale(ModelState& model, std::uint32_t group);
    void plan_stale(ModelState& model, Nanos now);
    void plan(ModelState& model, std::uint32_t group, Nanos now);
    void give_up_late(ModelState& model, std::uint32_t group, Nanos now);
    std::uint32_t window_rows(const ModelState& model, const Group& group, QueueKey last,
                              std::uint32_t wanted, Nanos now) const;
    QueueKey rank(const ModelState& model, const Group& group) const;
    void index_ready(ModelState& model, std::uint32_t group, const QueueKey& key);
    void index_waiting(ModelState& model, std::uint32_t group, Nanos ready_at);
    std::uint32_t rows_awaited(const ModelState& model, const Group& group) const;
    std::uint32_t held_rows(const ModelState& model, const Group& group, std::uint32_t limit,
                            Nanos now) const;
    bool settle(ModelState& model, Pool& pool, Nanos now);
    std::uint32_t spread_rows(const ModelState& model, const Group& group, Nanos now) const;
    bool take_try(ModelState& model, const LatencyModel& latency, std::uint32_t rows,
                  Nanos deadline, Nanos now) const;
    void form_planned(ModelState& model, std::uint32_t group, std::uint32_t batch,
                      const PlacementState& placement, Nanos starts_at, Nanos now);
    std::uint32_t fastest_placement(const ModelState& model, std::uint32_t rows, bool sure) const;
    void update_reference(ModelState& model);
    void trust_rows(ModelState& model, const PlacementState& placement);
    const LatencyModel& planning_latency(const ModelState& model, const Group& group) const;
    void learn_latency(ModelState& model, const BatchRecord& batch, std::uint32_t rows, Nanos now);

    // batching/targets.cc
    void meter(ModelState& model, const Request& request, const Arrival& arrival, Nanos now);
    void run_ticks(Nanos now);
    void tick(std::uint32_t component, Nanos now);
    template <class Visit>
    void each_metered(const Component& component, const Visit& visit);
    double fit_rows(const Component& component, double deviations);
    void retarget(Component& component);

    // batching/coverage.cc
    void cover_batches(const Component& component);
    double best_coverage(ModelState& model, double capacity);
    double busy_of(ModelState& model, double margin, std::size_t level);

    // admission/class_shares.cc
    ClassShare* class_share(ModelState& model, std::uint32_t level);
    std::uint32_t served_level(ModelState& model, const Arrival& arrival);
    void yield_levels(Component& component);
    template <class Visit>
    void each_class(const Component& component, const Visit& visit);
    void balance_classes(Component& component);
    void reconsider(std::uint32_t model, std::uint32_t group);
    void set_target(std::uint32_t model, std::uint32_t group, std::uint32_t target,
                    std::uint32_t awaited, Nanos gather_ns);

    // batching/blocking.cc
    template <class Visit>
    void each_metered_level(const Component& component, const Visit& visit);
    void plan_levels(Component& component);
    bool yields(const ModelState& model, std::uint32_t queue_level) const;
    Nanos hold_limit(const ModelState& model, std::uint32_t level, double margin, Nanos now) const;

    // execution/executors.cc
    std::uint32_t executor_of(std::uint32_t group);
    void arrange(Nanos now);
    std::uint32_t domain_of(std::vector<std::uint32_t> executors);
    void carry_over(std::deque<Component>& former, const std::vector<std::uint32_t>& formerly);
    void count_slots();
    void count_slots(const ModelState& model);
    void recount_pauses(const ModelState& model);
    void count_pauses(Component& component, Nanos now);
    void arrange_component(ModelState& model, std::uint32_t index);
    void touch_component(std::uint32_t component);
    // execution/waits.cc
    Upcoming upcoming(const ModelState& model, const Pool& pool, Nanos now);
    bool plan_waits(ModelState& model, const Pool& pool, const Upcoming& next, Nanos now);
    bool end_wait(ModelState& model, Pool& pool, Nanos now);
    bool end_wait_before(const Offer& offered, std::uint32_t barred, Nanos now);
    // execution/offers.cc
    void list_wait(std::uint32_t index, Pool& pool, std::uint32_t pin, Nanos ready_at);
    void offer(std::uint32_t index, Pool& pool, std::uint32_t pin);
    void offer_all(ModelState& model, std::uint32_t index);
    void withdraw(std::uint32_t index, Pool& pool, std::uint32_t pin);
    const Offer* best_offer(const Component& component, std::uint32_t barred) const;
    const Offer* urgent_below(const Domain& domain, const Offer& first, std::uint32_t barred,
                              Nanos now) const;
    bool brought_up_to_date(const Offer& offered, Nanos now);
    void give_up_held(const Component& component, Nanos now);
    void serve(std::uint32_t component, Nanos now);
    void serve_offer(const Offer& offered, const Choice& choice, Nanos now);

    // triton/queueing.cc
    bool triton_takes(const ModelState& model, const Request& request) const;
    std::uint32_t triton_level(const ModelState& model, std::uint64_t priority) const;
    bool triton_full(const ModelState& model, const Request& request) const;
    void join_levels(std::uint32_t slot, const Request& request, Nanos now);
    void leave_levels(ModelState& model, std::uint32_t slot);
    void drop_formed(std::uint32_t batch);
    void release_formed(ModelState& model);
    void rebuild_levels(ModelState& model, Nanos now);
    void rebuild_place(ModelState& model, std::uint32_t slot, Nanos now);

    // triton/former.cc
    struct TritonLook;
    bool triton_joins(const ModelState& model, const BatchRecord* open,
                      const std::vector<std::uint32_t>& pending,
                      const RequestRecord& request) const;
    TritonLook triton_gather(ModelState& model, const BatchRecord* open, Nanos now);
    bool triton_look(ModelState& model, Nanos now);
    void triton_append(ModelState& model, const TritonLook& look);
    void refuse_timed_out(const std::vector<std::uint32_t>& slots, Nanos now);
    bool triton_slot(const ModelState& model, Nanos now) const;
    void move_members(std::uint32_t from, std::size_t first, std::uint32_t to);
    void triton_fit(ModelState& model, std::uint32_t batch, const PlacementState& placement,
                    Nanos now);
    bool triton_take(ModelState& model, Nanos now);
    void run_triton(ModelState& model, Nanos now);
    Nanos triton_moment(const ModelState& model, Nanos now) const;

    // execution/replies.cc
    void leave_placement(std::uint32_t batch, Nanos now);
    void promote(PlacementState& placement, Nanos now);
    void start_first(const Executor& executor, Nanos now);
    void observe(ModelState& model, const BatchRecord& batch, Nanos now);
    std::vector<BatchMember> detach(std::uint32_t batch);
    void fail_members(const std::vector<BatchMember>& failed, const Ending& ending, Nanos now);
    std::uint32_t sent_batch(BatchHandle handle) const;
    bool rest_failed(ModelState& model, const BatchRecord& failed, FailureKind kind, Nanos now);
    void observe_unfinished(ModelState& model, const BatchRecord& batch, Nanos now);
    void give_up(std::uint32_t batch, StatusCode code, Nanos now);
    void release_given_up(Nanos now);
    void resolve_failure(ModelState& model, const BatchRecord& failed, FailureKind kind,
                         const Ending& ending, Nanos now);

    // execution/retries.cc
    void retry(ModelState& model, const BatchRecord& failed, std::size_t begin, std::size_t end,
               std::uint32_t tries);
    void retry_group(ModelState& model, const BatchRecord& failed,
                     const std::vector<BatchMember>& group, std::uint32_t tries);
    void drop_retry(std::uint32_t batch, Nanos now);
    void rebuild_retries(ModelState& model);
    bool bisect(ModelState& model, const BatchRecord& failed);
    bool unmerged(const ModelState& model, std::uint64_t signature, Nanos now) const;
    void suspect_failed(ModelState& model, std::uint64_t signature, Nanos now);
    void suspect_good(ModelState& model, std::uint64_t signature);

    // configure.cc
    void configure_placements(std::uint32_t index, const std::vector<Placement>& placements,
                              Nanos now);
    void update_served(ModelState& model, Nanos now);
    void fail_pool(ModelState& model, Pool& pool, std::uint32_t pin, Nanos now);

    // persist.cc, invariants.cc
    template <class Archive>
    void archive_records(Archive& archive);
    template <class Archive>
    void archive_places(Archive& archive);
    template <class Archive>
    void archive_sequences(Archive& archive);
    template <class Archive>
    void archive_queued(Archive& archive);
    template <class Archive>
    void archive_triton(Archive& archive, ModelState& model);
    template <class Archive>
    void archive_groups(Archive& archive, ModelState& model);
    template <class Archive>
    void archive_empty_groups(Archive& archive, ModelState& model);
    template <class Archive>
    void archive_executors(Archive& archive);
    template <class Archive>
    void archive_components(Archive& archive);
    void restore_queued(std::uint32_t slot);
    void restore_indexes();
    void restore_devices();
    void check_ledger() const;
    void check_backlogs() const;
    void check_counted(const PlacementState& placement) const;
    void check_devices() const;
    void check_model(std::uint32_t index) const;
    void check_sequence(std::uint32_t index) const;
    void check_sequences() const;
    void check_group(const ModelState& model, const Group& group) const;

    // memory/device_limits.cc
    const MemoryLimit& memory_limit(const ModelState& model, double row_size) const;
    RowsAllowed rows_allowed(const ModelState& model, const Group& group) const;
    RowsAllowed rows_allowed(const ModelState& model, const Group& group,
                             const PlacementState& placement) const;
    std::uint32_t rows_risked(const ModelState& model, const Group* group) const;
    double size_sent(const ModelState& model, const BatchRecord& batch) const;
    bool short_of_memory(ModelState& model, const Request& request, const Arrival& arrival,
                         float row_size, Admission& refused, Nanos now);
    void publish_device(std::uint32_t device);
    // memory/retries.cc
    void cut_sizes(ModelState& model, BatchRecord& failed);
    void retry_smaller(ModelState& model, const BatchRecord& failed, const Ending& ending,
                       Nanos now);
    void retry_alone(ModelState& model, const BatchRecord& failed, const Ending& ending, Nanos now);
    void refuse_memory(ModelState& model, const BatchRecord& failed, const Ending& ending,
                       Nanos now);
    // memory/holds.cc
    void stand_in_line(std::uint32_t batch, Nanos now);
    bool take_hold(std::uint32_t batch, Nanos now);
    void end_hold(std::uint32_t batch, Nanos now);
    void release_hold(std::uint32_t batch, Nanos now);
    void release_ended_holds(Nanos now);
    void release_unserved_holds(const ModelState& model, Nanos now);
    void release_changed_holds(const ModelState& model, const std::vector<Placement>& placements,
                               Nanos now);
    void note_sent_beside(std::uint32_t batch, const PlacementState& placement);
    void note_left_beside(const PlacementState& placement);
    template <class Visit>
    void each_near(std::uint32_t model, const PlacementState& there, const Visit& visit);
    void place_on_devices(std::uint32_t index, PlacementState& placement,
                          const std::vector<std::uint32_t>& devices, Nanos now);
    void prove_memory(ModelState& model, const BatchRecord& batch, Nanos now);

    // ledger.cc
    BackendCounters* backend_counters(std::uint32_t backend);
    void count_answer(const RequestRecord& request, const Ending& ending, Nanos now);
    void count_queue_wait(const RequestRecord& request, Nanos now);
    void count_dispatch(const ModelState& model, const BatchRecord& batch);
    void count_departure(const BatchRecord& batch);
    void count_reply(const BatchRecord& batch, Nanos now);
    void count_completions(ModelState& model, const Completions& done, Nanos started, Nanos now);
    void count_incomplete(const RequestRecord& request, const Ending& ending, Nanos now);
    void count_execution(ModelState& model, std::uint32_t rows, Nanos ran_ns);
    void count_failure(const BatchRecord& batch);
    void publish_queue(std::uint32_t model);
};

}  // namespace infersched::engine
