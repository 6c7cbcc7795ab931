// The truths that must hold after every event; a broken one ends the process with its text.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "engine/core.h"

namespace infersched::engine {
namespace {

void must(bool holds, const char* truth) {
    if (holds) return;
    std::fprintf(stderr, "engine invariant broken: %s\n", truth);
    std::abort();
}

void check_offer(const ModelState& model, const Pool& pool) {
    if (!pool.offered || model.dirty || !pool.retries.empty()) return;
    must(!pool.ready.empty(), "what is offered is ready");
    const Group& group = model.groups[pool.ready.begin()->group];
    const bool binds = group.reserve.binds(group.head().level);
    must(group.stale || pool.offer_reserve == (binds ? group.reserve.executors : 0),
         "an offer is held back for what it has to leave to others");
}

// What waits for more rows, as the domains know it, and when it is looked at again.
template <class Models, class Domains>
void check_waits(const Models& models, const Domains& domains, const TimerHeap& moments) {
    std::vector<std::size_t> listed(domains.size());
    for (std::uint32_t index = 0; index < models.size(); ++index) {
        const ModelState& model = models[index];
        const auto check = [&](const Pool& pool, std::uint32_t pin) {
            const Nanos first = pool.waiting.empty() ? kNever : pool.waiting.begin()->first;
            const bool known = pool.domain != kNoSlot && model.policy.in_use && !model.holding;
            must(model.dirty || pool.wait_listed == (known ? first : kNever),
                 "a domain knows until when the first group of a pool waits");
            const bool served = first != kNever && pool.unserved_since == kNever;
            must(model.dirty || !served || (moments.contains(index) && moments.at(index) <= first),
                 "a model has its turn by the time that a group of it has waited");
            if (pool.wait_listed == kNever) return;
            must(domains[pool.domain].waits.count({pool.wait_listed, index, pin}) == 1,
                 "a domain lists the pools that have groups that wait");
            ++listed[pool.domain];
        };
        check(model.shared, kNoBackend);
        for (const PlacementState& p : model.placements) check(p.pinned, p.backend);
    }
    for (std::size_t i = 0; i < listed.size(); ++i) {
        must(domains[i].waits.size() == listed[i], "a domain lists nothing else as waiting");
    }
}

}  // namespace

void Core::check_group(const ModelState& model, const Group& group) const {
    std::uint64_t rows = 0;
    std::uint64_t endless = 0;
    must(group.order.consistent(), "a queue's nodes are in order");
    std::size_t levels = 0;
    std::uint32_t level = 0;
    for (const QueueKey& key : group.order) {
        const RequestRecord& request = requests_[key.slot];
        must(requests_.live(key.slot) && request.queued, "a queued request is live");
        must(request.sequence == key.sequence && request.deadline == key.deadline,
             "a queue is ordered by what its requests say");
        rows += request.rows_left();
        if (key.deadline == kNever) endless += request.rows_left();
        const bool first = levels == 0 || level != key.level;
        levels += first;
        level = key.level;
        must(deadlines_.contains(key.slot) == (first && key.deadline != kNever),
             "the first deadline of a level has a timer, no other");
    }
    must(levels == group.timed.size(), "a group knows the first of every level");
    must(rows == group.rows, "a group's rows are those of its requests");
    std::uint64_t level_rows = 0;
    std::uint64_t endless_rows = 0;
    for (const std::uint32_t of_level : group.level_rows) level_rows += of_level;
    for (const std::uint32_t of_level : group.endless_rows) endless_rows += of_level;
    must(level_rows == rows, "the rows of all levels are a group's rows");
    must(endless_rows == endless, "those without a deadline are counted");
    if (group.order.empty()) {
        must(group.index == Group::Index::kNone, "an empty group is in no index");
        return;
    }
    must(group.index != Group::Index::kNone, "a group with requests is ready or waits");
    if (group.index != Group::Index::kReady) return;
    must(group.stale || group.ready_key.sequence == group.head().sequence,
         "a group is ready as its head");
    must(group.by_age.first != kNoSlot && model.waiting.total() > 0, "its requests are listed");
}

void Core::check_model(std::uint32_t index) const {
    const ModelState& model = models_[index];
    std::uint64_t rows = 0;
    std::uint64_t grouped = 0;
    WaitingRequests waiting;
    for (std::uint32_t slot = model.by_age.first; slot != kNoSlot;
         slot = requests_[slot].in_model.next) {
        const RequestRecord& request = requests_[slot];
        must(request.queued && request.model == index, "the age list names queued requests");
        waiting.add(request.asked_level, request.bytes);
        grouped += request.held || request.in_levels;
        rows += request.rows_left();
    }
    must(waiting == model.waiting && rows == model.queued_rows,
         "queue totals are those of the queued requests");
    must(model.ages.listed(requests_) == (model.policy.queue_age_max_ns > 0 ? waiting.total() : 0),
         "where their age is bounded, requests are listed by level");
    std::size_t filled = 0;
    for (std::uint32_t g = 0; g < model.groups.slots(); ++g) {
        check_group(model, model.groups[g]);
        grouped += model.groups[g].order.size();
        filled += !model.groups[g].order.empty();
    }
    must(model.groups.size() <= filled + GroupTable::kEmptyGroupsMax, "empty groups are bounded");
    must(grouped == waiting.total(),
         "every queued request is in one group or level or held in a sequence");
    must(model.triton.consistent(requests_), "the levels list what waits in them");
    for (const std::uint32_t batch : model.triton.formed) {
        must(batches_.live(batch) && batches_[batch].formed && batches_[batch].model == index,
             "a formed batch waits for an instance of its model");
    }
    std::uint64_t out = 0;
    for (const PlacementState& p : model.placements) {
        std::uint64_t rows_out = 0;
        for (const std::uint32_t batch : p.out) {
            must(batches_.live(batch) && batches_[batch].retry_sequence == 0,
                 "a slot is held by a batch that was sent");
            must(batches_[batch].backend == p.backend && batches_[batch].model == index,
                 "a batch holds a slot where it was sent");
            rows_out += batches_[batch].rows;
        }
        must(rows_out == p.rows_out, "rows out are those of the batches out");
        out += p.out.size();
    }
    must(out == model.inflight_batches && out == counters(index).inflight_batches,
         "batches in flight hold one slot each");
    const_cast<ModelState&>(model).each_pool([&](const Pool& pool) { check_offer(model, pool); });
    std::size_t pinned = 0;
    for (const PlacementState& p : model.placements) pinned += p.sequence_count;
    must(pinned <= model.sequences.size(), "a sequence is pinned once");
    std::uint64_t executions = 0;
    for (const BatchSizeStats& size : model.stats.batch_sizes) executions += size.batches;
    must(executions == model.stats.batches, "every execution has a size");
    must(model.suspects.size() <= kSuspectsMax, "suspects are bounded");
}

void Core::check_sequence(std::uint32_t index) const {
    const SequenceRecord& sequence = sequences_[index];
    const ModelState& model = models_[sequence.model];
    const auto known = model.sequences.find(sequence.key);
    must(known != model.sequences.end() && known->second == index,
         "a sequence is found by its key");
    std::uint64_t last = 0;
    const auto in_order = [&](std::uint32_t slot) {
        must(requests_.live(slot) && requests_[slot].queued, "a sequence's request is queued");
        must(requests_[slot].sequence > last, "a sequence is sent in the order of admission");
        must(sequential_[slot].sequence == index, "a request knows its sequence");
        last = requests_[slot].sequence;
    };
    if (sequence.lead != kNoSlot) in_order(sequence.lead);
    for (std::uint32_t slot = sequence.held.first; slot != kNoSlot;
         slot = requests_[slot].in_group.next) {
        in_order(slot);
        must(requests_[slot].held, "what a sequence holds is in no group");
    }
    const bool next_waits = sequence.lead != kNoSlot || sequence.inflight > 0 || sequence.doomed;
    must(sequence.held.empty() || next_waits, "something will let a held request go");
    must(!sequence.lost || sequence.backend == kNoBackend, "a lost sequence has no backend");
    const bool timed = model.policy.sequence_idle_ns == kNever || idle_.contains(index);
    must(!sequence.idle() || timed, "an idle sequence will be forgotten");
    must(sequence.idle() || !idle_.contains(index), "a busy sequence is not forgotten");
}

void Core::check_sequences() const {
    std::vector<std::uint32_t> inflight(sequences_.slots());
    for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
        if (!requests_.live(slot) || !requests_[slot].sequential) continue;
        const std::uint32_t index = sequential_[slot].sequence;
        must(sequences_.live(index), "a request's sequence is live");
        inflight[index] += requests_[slot].dispatched;
    }
    for (std::uint32_t index = 0; index < sequences_.slots(); ++index) {
        if (!sequences_.live(index)) continue;
        check_sequence(index);
        must(inflight[index] == sequences_[index].inflight, "a sequence counts what was sent");
    }
    for (const ModelState& model : models_) {
        for (const PlacementState& p : model.placements) {
            std::uint32_t count = 0;
            for (std::uint32_t index = p.sequences.first; index != kNoSlot;
                 index = sequences_[index].in_placement.next, ++count) {
                must(sequences_[index].backend == p.backend, "a sequence is listed where it is");
            }
            must(count == p.sequence_count, "a placement counts its sequences");
        }
    }
}

void Core::check_ledger() const {
    std::uint64_t in_flight = 0;
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        const ModelCounters& page = counters(index);
        must(page.admitted ==
                 page.completed + page.expired + page.cancelled + page.failed + page.in_flight,
             "admitted = completed + expired + cancelled + failed + in flight");
        in_flight += page.in_flight;
    }
    must(in_flight == requests_.size(), "requests in flight are those that are kept");
}

void Core::check_backlogs() const {
    if (rearrange_) return;
    std::vector<Backlog> running(components_.size());
    std::map<std::uint32_t, std::uint32_t> beside;
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot) || batches_[slot].backend == kNoBackend) continue;
        const BatchRecord& batch = batches_[slot];
        const std::uint32_t component = models_[batch.model].component;
        must(batch.counted != (batch.followed || (batch.started_at == kNever && !batch.early())),
             "what runs or is about to is counted, unless what follows it is");
        if (batch.counted && component != kNoSlot) running[component].start(batch.counted_as);
        if (batch.started_at != kNever) ++beside[batch.place];
    }
    for (const ModelState& model : models_) {
        for (const PlacementState& p : model.placements) check_counted(p);
    }
    for (const auto& [place, batches] : beside) {
        must(places_.running(place) == batches, "a place knows how many batches run there");
    }
    for (std::size_t i = 0; i < components_.size(); ++i) {
        must(components_[i].backlog.runs_as(running[i]), "a backlog knows the batches that run");
    }
}

// Where there are fewer instances than there were, more batches may still run.
void Core::check_counted(const PlacementState& placement) const {
    std::size_t counted = 0;
    std::size_t running = 0;
    for (const std::uint32_t slot : placement.out) {
        counted += batches_[slot].counted ? 1 : 0;
        running += batches_[slot].started_at != kNever ? 1 : 0;
    }
    must(counted <= std::max<std::size_t>(running, placement.slots),
         "no more batches are counted than run, or have an instance to run on");
}

void Core::check_devices() const {
    std::vector<std::uint64_t> reserved(memory_.devices().size());
    std::vector<std::uint64_t> inflight(reserved.size());
    std::vector<std::uint64_t> unsettled(reserved.size());
    std::vector<std::uint64_t> kept(reserved.size());
    std::vector<std::size_t> beside(batches_.slots());
    for (const ModelState& model : models_) {
        for (const PlacementState& p : model.placements) {
            if (p.held_for != 0) {
                const std::uint32_t slot = batches_.find(p.held_for);
                must(slot != kNoSlot && holds_.contains(slot) && batches_[slot].alone,
                     "devices are held free for a batch that is to be alone there");
                const auto own = std::count(p.out.begin(), p.out.end(), slot);
                beside[slot] += p.out.size() - static_cast<std::size_t>(own);
            }
            for (const std::uint32_t device : p.devices) kept[device] += p.held_bytes;
            must(p.devices.empty() ||
                     p.held_bytes == static_cast<std::uint64_t>(std::ceil(p.memory.held_bytes())),
                 "what is counted as kept is what the largest batches took");
            const auto grows = [&](std::uint32_t slot) { return batches_[slot].grows; };
            const auto growing = std::count_if(p.out.begin(), p.out.end(), grows);
            must(p.growing.size() == static_cast<std::size_t>(growing),
                 "the batches that grow are listed");
            for (std::size_t i = 0; i < p.devices.size(); ++i) {
                MemoryTaking anew = p.taking[i];
                anew.count(p.growing, p.memory, p.memory.matched_on(i));
                must(anew.bytes() == p.taking[i].bytes(),
                     "what batches may have taken is counted by what is known of the need");
                reserved[p.devices[i]] += anew.bytes();
                inflight[p.devices[i]] += p.growing.size();
                unsettled[p.devices[i]] += anew.settled() ? 0 : 1;
            }
        }
    }
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot)) continue;
        const BatchRecord& batch = batches_[slot];
        must(holds_.contains(slot) == (batch.held_since != kNever) &&
                 batch.others_out == beside[slot],
             "what is out beside a batch that is to be alone is counted");
    }
    for (std::size_t index = 0; index < reserved.size(); ++index) {
        const Device& device = memory_.devices()[index];
        must(device.reserved_bytes() == reserved[index] + device.left_bytes() &&
                 device.inflight() == inflight[index] && device.unsettled() == unsettled[index] &&
                 device.kept_bytes() == kept[index],
             "what is reserved on a device is what its batches may have taken");
    }
}

void Core::check_invariants() const {
    check_ledger();
    check_backlogs();
    check_devices();
    if (!rearrange_) check_waits(models_, domains_, moments_);
    for (std::uint32_t index = 0; index < models_.size(); ++index) check_model(index);
    check_sequences();
    must(deadlines_.consistent() && moments_.consistent() && idle_.consistent() &&
             given_up_.consistent() && holds_.consistent(),
         "timers are in heap order");
    std::size_t timed = 0;
    std::size_t carried = 0;
    for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
        if (!requests_.live(slot)) continue;
        const RequestRecord& request = requests_[slot];
        const bool alone = !request.grouped() && request.deadline != kNever;
        must(!alone || deadlines_.contains(slot), "a deadline has a timer");
        timed += deadlines_.contains(slot);
        must(request.queued || !request.batches.empty(), "a request is queued or in a batch");
        carried += request.batches.size();
        for (std::size_t i = 0; i < request.batches.size(); ++i) {
            must(batches_.live(request.batches[i]), "a request is carried by live batches");
        }
    }
    must(timed == deadlines_.size(), "a timer belongs to a request");
    std::size_t lives = 0;
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot)) continue;
        const BatchRecord& batch = batches_[slot];
        const auto& all = batch.members;
        const auto live = std::count_if(all.begin(), all.end(), [&](const BatchMember& member) {
            return requests_.find(member.request) != kNoSlot;
        });
        must(static_cast<std::uint32_t>(live) == batch.live, "live members are counted");
        must(given_up_.contains(slot) == (batch.release_at != kNever),
             "a batch that was given up is released in time");
        must(batch.retry_sequence == 0 || live > 0, "a group that waits has members that wait");
        lives += batch.live;
    }
    must(lives == carried, "members and their batches know each other");
}

}  // namespace infersched::engine
