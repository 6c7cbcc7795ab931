// Saves and loads the whole state: configuration, queues, batches out there, averages, counters.
//
// Queues are saved as their requests. Loading rebuilds the indexes over them, which depend only on
// keys, so the loaded engine acts as the saved one.
#include <algorithm>

#include "engine/archive.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

constexpr std::uint64_t kStateMagic = 0x52656e69676e65;  // "engineR"

template <class Archive>
void archive_triton_policy(Archive& archive, ModelPolicy& p) {
    bool present = p.triton != nullptr;
    archive(present);
    if (!present) return;
    TritonBatching batching;
    if constexpr (!Archive::kReads) batching = *p.triton;
    archive(batching.dynamic);
    archive(batching.preferred_rows);
    archive(batching.queue_delay_max_ns);
    archive(batching.preserve_ordering);
    archive(batching.default_level);
    archive.vector_size(batching.levels, 14);
    for (TritonQueuePolicy& level : batching.levels) {
        archive(level.delay_timed_out);
        archive(level.timeout_ns);
        archive(level.timeout_override);
        archive(level.requests_max);
    }
    p.triton = std::make_shared<const TritonBatching>(batching);
}

template <class Archive>
void archive_policy(Archive& archive, ModelPolicy& p) {
    archive(p.in_use);
    archive(p.merge);
    archive(p.rows_max);
    archive(p.preferred_rows);
    archive(p.mandatory_rows);
    archive(p.queue_delay_max_ns);
    archive(p.priority_levels);
    archive(p.default_priority);
    archive(p.slo_ns);
    archive.vector_size(p.levels, 17);
    for (LevelPolicy& level : p.levels) {
        archive(level.slo_ns);
        archive(level.best_effort);
        archive(level.attainment);
    }
    archive(p.attainment);
    archive(p.load_aware);
    archive(p.value);
    archive(p.aging_ns);
    archive(p.queue_requests_max);
    archive(p.queue_bytes_max);
    archive(p.queue_age_max_ns);
    archive(p.staged_batches_max);
    archive(p.idempotent);
    archive(p.cancellable);
    archive(p.direct_max);
    archive(p.sequence_idle_ns);
    archive(p.admitting);
    archive(p.hold_requests);
    archive_triton_policy(archive, p);
}

template <class Archive>
void archive_growths(Archive& archive, std::vector<MemoryGrowth>& growths) {
    archive.vector_size(growths, 16);
    for (MemoryGrowth& growth : growths) {
        archive(growth.from);
        archive(growth.to);
    }
}

template <class Archive>
void archive_placement(Archive& archive, PlacementState& p) {
    archive(p.backend);
    archive(p.instances);
    archive(p.device_instances);
    archive(p.slots);
    archive(p.ready);
    archive(p.configured);
    archive(p.out);
    archive(p.rows_out);
    archive(p.ns_per_row);
    archive(p.batch_ns);
    archive(p.executor);
    p.head_start.archive(archive);
    p.likeness.archive(archive);
    archive(p.batches_learned);
    archive(p.ignored_times.backward);
    archive(p.ignored_times.zero);
    archive(p.ignored_times.too_long);
    archive(p.ignored_times.prior);
    archive(p.rows_alike);
    bool own = p.own_latency != nullptr;
    archive(own);
    if constexpr (Archive::kReads) {
        p.own_latency = own ? std::make_unique<LatencyModel>() : nullptr;
    }
    if (own) p.own_latency->archive(archive);
    archive(p.cut);
    archive(p.failures);
    archive(p.rest_until);
    archive(p.pinned.unserved_since);
    archive(p.devices);
    p.memory.archive(archive);
    archive(p.held_bytes);
    archive_growths(archive, p.growing);
    archive.vector_size(p.taking, 37);
    for (MemoryTaking& taking : p.taking) taking.archive(archive);
    archive.require(p.taking.size() == p.devices.size() && p.memory.has_devices(p.devices.size()));
    archive(p.held_for);
    archive(p.hold_paid_at);
    archive(p.sequences.first);
    archive(p.sequences.last);
    archive(p.sequence_count);
    archive.require(p.instances > 0);
    for (const std::uint32_t device : p.devices) archive.require(device < kDevicesMax);
}

template <class Archive>
void archive_stats(Archive& archive, ModelStats& s) {
    for (std::uint64_t* word :
         {&s.rows, &s.batches, &s.completed, &s.completed_ns, &s.failed, &s.failed_ns, &s.rejected,
          &s.rejected_ns, &s.cancelled, &s.cancelled_ns, &s.queue_ns, &s.backend_ns}) {
        archive(*word);
    }
    archive(s.last_answer);
    archive.vector_size(s.batch_sizes, 16);
    for (BatchSizeStats& size : s.batch_sizes) {
        archive(size.batches);
        archive(size.backend_ns);
    }
}

template <class Archive>
void archive_model(Archive& archive, ModelState& m) {
    archive_policy(archive, m.policy);
    archive(m.known);
    archive(m.merging_off);
    archive(m.dirty);
    archive(m.holding);
    archive(m.doomed);
    archive.vector_size(m.placements, 16);
    for (PlacementState& placement : m.placements) archive_placement(archive, placement);
    archive(m.shared.unserved_since);
    archive(m.inflight_batches);
    archive(m.batch_ns);
    archive(m.drain_ns);
    archive(m.last_complete);
    archive_stats(archive, m.stats);
    m.latency.archive(archive);
    archive(m.learns);
    archive(m.shares);
    archive(m.metered);
    archive(m.device_ns);
    archive(m.reference);
    archive(m.latencies_differ);
    archive(m.rows_trusted);
    archive(m.request_rows);
    archive(m.memory_probe_at);
    archive(m.row_bytes);
    archive(m.refusing_since);
    archive(m.doubted);
    m.size_probes.archive(archive);
    archive(m.more_tried_until);
    archive(m.listed_aged);
    archive.require(m.reference == kNoSlot || m.reference < m.placements.size());
    archive(m.bisect_tenths);
    archive.vector_size(m.suspects, 20);
    for (Suspect& suspect : m.suspects) {
        archive(suspect.signature);
        archive(suspect.score);
        archive(suspect.until);
    }
}

template <class Archive>
void archive_request(Archive& archive, RequestRecord& r) {
    archive(r.user);
    archive(r.sequence);
    archive(r.bytes);
    archive(r.arrival);
    archive(r.deadline);
    archive(r.model);
    archive(r.rows);
    archive(r.rows_sent);
    archive(r.level);
    archive(r.asked_level);
    archive(r.tenant);
    archive(r.aged);
    archive(r.over_share);
    archive(r.kept);
    archive(r.share_ns);
    archive(r.backlog.work_ns);
    archive(r.backlog.level);
    archive(r.backlog.bucket);
    archive(r.queued);
    archive(r.dispatched);
    r.batches.archive(archive);
    archive(r.sequential);
    archive(r.held);
    archive(r.in_levels);
    archive(r.delayed);
    archive(r.admitted_late);
    archive(r.mergeable);
    archive(r.row_size);
    archive(r.signature);
    archive(r.enqueued_at);
    archive(r.timeout_at);
    archive.require(r.rows_sent <= r.rows && Backlog::sound(r.backlog));
    archive.require(r.tenant < kTenantsMax && r.level > 0 && r.asked_level > 0);
}

template <class Archive>
void archive_batch(Archive& archive, BatchRecord& b) {
    archive(b.model);
    archive(b.backend);
    archive(b.pin);
    archive(b.rows);
    archive(b.live);
    archive(b.tries);
    archive(b.avoid);
    archive(b.executor);
    archive(b.signature);
    archive(b.retry_sequence);
    archive(b.retried);
    archive(b.half);
    archive(b.memory_limited);
    archive(b.cut_backend);
    archive(b.cap_before);
    archive(b.memory_tries);
    archive(b.alone);
    archive(b.others_out);
    archive(b.held_since);
    archive(b.mergeable);
    archive(b.formed);
    archive(b.sealed);
    archive(b.grows);
    archive(b.growth.from);
    archive(b.growth.to);
    archive(b.row_size);
    archive(b.dispatched_at);
    archive(b.reserve);
    archive(b.started_at);
    archive(b.place);
    archive(b.ran_before);
    archive(b.ends_at);
    archive(b.follows);
    archive(b.freed_at);
    archive(b.counted);
    archive(b.followed);
    archive(b.runs_on);
    archive(b.counted_as.end);
    archive(b.counted_as.reserve);
    archive(b.counted_as.overdue_at);
    archive(b.release_at);
    archive.vector_size(b.members, 24);
    for (BatchMember& member : b.members) {
        archive(member.request);
        archive(member.user);
        archive(member.row_begin);
        archive(member.rows);
    }
}

template <class Archive>
void archive_member(Archive& archive, SequenceMember& m) {
    archive(m.path);
    archive(m.sequence);
    archive(m.pin);
    archive(m.start);
    archive(m.end);
}

// Those held are listed as they are queued.
template <class Archive>
void archive_sequence(Archive& archive, SequenceRecord& s) {
    archive(s.key);
    archive(s.number);
    archive(s.model);
    archive(s.backend);
    archive(s.lead);
    archive(s.again);
    archive(s.inflight);
    archive(s.path);
    archive(s.started);
    archive(s.ended);
    archive(s.lost);
    archive(s.doomed);
    archive(s.in_placement.previous);
    archive(s.in_placement.next);
}

}  // namespace

// The timers and the retry queues, which follow from the records.
void Core::restore_indexes() {
    for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
        if (requests_.live(slot) && !requests_[slot].grouped()) time_alone(slot);
    }
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot) || batches_[slot].retry_sequence == 0) continue;
        const BatchRecord& batch = batches_[slot];
        models_[batch.model].pool(batch.pin).retries.insert({batch.retry_sequence, slot});
    }
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot)) continue;
        const BatchRecord& batch = batches_[slot];
        const BatchHandle handle = batches_.handle(slot);
        if (batch.release_at != kNever) given_up_.push({batch.release_at, handle, slot});
        if (batch.held_since != kNever) holds_.push({batch.hold_end(), handle, slot});
    }
}

void Core::restore_devices() {
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        for (PlacementState& placement : models_[index].placements) {
            memory_.restore(index, placement);
        }
        models_[index].memory_stamp = 0;
        models_[index].memory_limit = {};
    }
    for (std::uint32_t index = 0; index < memory_.devices().size(); ++index) publish_device(index);
}

template <class Archive>
void Core::archive_sequences(Archive& archive) {
    sequences_.archive_slots(archive);
    for (std::uint32_t slot = 0; slot < sequences_.slots(); ++slot) {
        if (!sequences_.live(slot)) continue;
        SequenceRecord& sequence = sequences_[slot];
        archive_sequence(archive, sequence);
        Nanos idle_until = idle_.contains(slot) ? idle_.at(slot) : kNever;
        archive(idle_until);
        if (!archive.require(sequence.model < models_.size())) return;
        models_[sequence.model].sequences[sequence.key] = slot;
        idle_.set({idle_until, sequence.number, slot});
    }
}

template <class Archive>
void Core::archive_records(Archive& archive) {
    requests_.archive_slots(archive);
    for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
        if (!requests_.live(slot)) continue;
        archive_request(archive, requests_[slot]);
        if (requests_[slot].sequential) {
            if (slot >= sequential_.size()) sequential_.resize(slot + 1);
            archive_member(archive, sequential_[slot]);
        }
        if (!archive.require(requests_[slot].model < models_.size())) return;
    }
    batches_.archive_slots(archive);
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot)) continue;
        BatchRecord& batch = batches_[slot];
        archive_batch(archive, batch);
        if (!archive.require(batch.model < models_.size())) return;
        ModelState& model = models_[batch.model];
        const bool waits = batch.formed || batch.retry_sequence != 0;
        const std::uint32_t place = waits ? batch.pin : batch.backend;
        const bool placed = (waits && place == kNoBackend) || model.placement(place) != nullptr;
        if (!archive.require(placed)) return;
    }
}

template <class Archive>
void Core::archive_places(Archive& archive) {
    places_.archive(archive);
    archive(places_moved_);
    if constexpr (!Archive::kReads) return;
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (!batches_.live(slot) || !batches_[slot].runs()) continue;
        if (!archive.require(places_.found_running(batches_[slot].place))) return;
    }
}

template <class Archive>
void Core::archive(Archive& archive) {
    std::uint64_t magic = kStateMagic;
    archive(magic);
    if (!archive.require(magic == kStateMagic)) return;
    archive(draining);
    archive(tenant_weights_);
    const std::size_t tenants = tenant_weights_.size();
    if (!archive.require(tenants > 0 && tenants <= kTenantsMax)) return;
    archive(sequence_);
    archive(retry_sequence_);
    archive(wake_);
    archive(rests_until_);
    archive(dirty_);
    std::vector<std::uint8_t> available(backends_available_.begin(), backends_available_.end());
    archive(available);
    backends_available_.assign(available.begin(), available.end());
    archive.vector_size(models_, 64);
    if (!archive.require(models_.size() <= kModelsMax)) return;
    unpublished_.resize(models_.size() - std::min(models_.size(), kCountersModelsMax));
    for (ModelState& model : models_) archive_model(archive, model);
    archive_records(archive);
    archive_executors(archive);
    memory_.archive(archive);
    archive_places(archive);
    if constexpr (Archive::kReads) restore_devices();
    archive_sequences(archive);
    archive_queued(archive);
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        archive_empty_groups(archive, models_[index]);
        archive_groups(archive, models_[index]);
        archive_triton(archive, models_[index]);
        Nanos moment = moments_.contains(index) ? moments_.at(index) : kNever;
        archive(moment);
        moments_.set({moment, index, index});
        archive.raw(&counters(index), sizeof(ModelCounters));
    }
    archive.raw(page_->backends, sizeof(page_->backends));
    const auto sound = [&](std::uint32_t index) { return index < models_.size(); };
    if (!archive.require(std::all_of(dirty_.begin(), dirty_.end(), sound))) return;
    if constexpr (Archive::kReads) restore_indexes();
    archive_components(archive);
}

template void Core::archive(ArchiveWriter&);
template void Core::archive(ArchiveReader&);

}  // namespace infersched::engine
