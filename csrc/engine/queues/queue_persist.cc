// Saves and loads what is queued, and what is known of the load and of the executors that share it.
#include <algorithm>

#include "engine/archive.h"
#include "engine/core.h"

namespace infersched::engine {
namespace {

template <class Archive>
void archive_key(Archive& archive, GroupKey& key) {
    archive(key.signature);
    archive(key.pin);
    archive(key.mergeable);
}

// False: it names a backend that does not have the model.
template <class Archive>
bool archive_key(Archive& archive, ModelState& model, GroupKey& key) {
    archive_key(archive, key);
    return archive.require(key.pin == kNoBackend || model.placement(key.pin) != nullptr);
}

template <class Archive>
void archive_ready_key(Archive& archive, QueueKey& key) {
    archive(key.level);
    archive(key.slot);
    archive(key.deadline);
    archive(key.sequence);
}

template <class Archive>
void archive_load(Archive& archive, Group& group) {
    group.rate.archive(archive);
    group.mix.archive(archive);
    for (std::uint32_t& rows : group.level_targets) archive(rows);
    archive(group.budget_ns);
    archive(group.target);
    archive(group.awaited);
    archive(group.gather_ns);
    archive(group.reserve.executors);
    archive(group.reserve.level);
    archive(group.rows_fit);
    archive(group.row_size);
    archive(group.rows_planned);
    archive(group.planned_ns);
    archive(group.planned_at);
}

}  // namespace

template <class Archive>
void Core::archive_queued(Archive& archive) {
    std::vector<std::uint32_t> queued;
    if constexpr (!Archive::kReads) {
        for (std::uint32_t slot = 0; slot < requests_.slots(); ++slot) {
            if (requests_.live(slot) && requests_[slot].queued) queued.push_back(slot);
        }
        std::sort(queued.begin(), queued.end(), [&](std::uint32_t a, std::uint32_t b) {
            return requests_[a].sequence < requests_[b].sequence;
        });
    }
    archive(queued);
    for (const std::uint32_t slot : queued) {
        if (!archive.require(slot < requests_.slots())) return;
        RequestRecord& request = requests_[slot];
        if (!archive.require(request.model < models_.size())) return;
        if (request.held || request.in_levels) {
            if constexpr (Archive::kReads) restore_queued(slot);
            continue;
        }
        ModelState& model = models_[request.model];
        GroupKey key;
        if constexpr (!Archive::kReads) key = model.groups[request.group].key;
        if (!archive_key(archive, model, key)) return;
        if constexpr (Archive::kReads) {
            request.group = model.groups.get(key);
            restore_queued(slot);
        }
    }
    for (std::uint32_t index = 0; index < models_.size(); ++index) {
        std::uint32_t& young = models_[index].young;
        archive(young);
        const bool sound =
            young == kNoSlot || (young < requests_.slots() && requests_.live(young) &&
                                 requests_[young].queued && requests_[young].model == index);
        if (!archive.require(sound)) return;
    }
}

// Links a loaded request into its queue; requests come in the order of their admission.
void Core::restore_queued(std::uint32_t slot) {
    RequestRecord& request = requests_[slot];
    ModelState& model = models_[request.model];
    if (request.held) {
        sequences_[sequential_[slot].sequence].held.append<&RequestRecord::in_group>(requests_,
                                                                                     slot);
    } else if (!request.in_levels) {
        Group& group = model.groups[request.group];
        group.order.insert(nodes_, request.key(slot));
        time_inserted(group, request.key(slot));
        group.by_age.append<&RequestRecord::in_group>(requests_, slot);
        group.count_rows(request);
        group.work_ns += request.backlog.work_ns;
    }
    model.by_age.append<&RequestRecord::in_model>(requests_, slot);
    model.waiting.add(request.asked_level, request.bytes);
    model.queued_rows += request.rows_left();
    if (model.policy.queue_age_max_ns > 0) model.ages.add(requests_, slot);
}

// Which groups wait, and until when, follows from averages of the past: it is saved.
template <class Archive>
void Core::archive_groups(Archive& archive, ModelState& model) {
    std::vector<std::uint32_t> filled;
    if constexpr (!Archive::kReads) {
        for (std::uint32_t i = 0; i < model.groups.slots(); ++i) {
            if (!model.groups[i].order.empty()) filled.push_back(i);
        }
        std::sort(filled.begin(), filled.end(), [&](std::uint32_t a, std::uint32_t b) {
            return model.groups[a].head() < model.groups[b].head();
        });
    }
    archive.vector_size(filled, 13);
    for (const std::uint32_t index : filled) {
        GroupKey key;
        if constexpr (!Archive::kReads) key = model.groups[index].key;
        if (!archive_key(archive, model, key)) return;
        const std::uint32_t own = Archive::kReads ? model.groups.get(key) : index;
        Group& group = model.groups[own];
        archive(group.index);
        archive(group.ready_at);
        archive_ready_key(archive, group.ready_key);
        archive_load(archive, group);
        if (Archive::kReads && !group.rate.idle()) model.groups.meter(own);
        bool stale = group.stale;
        archive(stale);
        if (!archive.require(!group.order.empty())) return;
        if constexpr (Archive::kReads) {
            Pool& pool = model.pool(key.pin);
            if (stale) mark_stale(model, own);
            if (group.index == Group::Index::kReady) pool.ready.insert({group.ready_key, own});
            if (group.index == Group::Index::kWaiting) pool.waiting.insert({group.ready_at, own});
        }
    }
}

// Groups without requests are kept, in the order in which they became empty, for what is known of
// their arrivals.
template <class Archive>
void Core::archive_empty_groups(Archive& archive, ModelState& model) {
    std::vector<std::uint32_t> emptied = model.groups.emptied();
    archive.vector_size(emptied, 13);
    for (std::uint32_t& index : emptied) {
        GroupKey key;
        if constexpr (!Archive::kReads) key = model.groups[index].key;
        archive_key(archive, key);
        if constexpr (Archive::kReads) index = model.groups.get(key);
        archive_load(archive, model.groups[index]);
        if (Archive::kReads && !model.groups[index].rate.idle()) model.groups.meter(index);
    }
    if constexpr (Archive::kReads) model.groups.set_emptied(emptied);
}

template <class Archive>
void Core::archive_executors(Archive& archive) {
    archive.vector_size(executors_, 12);
    for (Executor& executor : executors_) {
        archive(executor.group);
        archive(executor.out);
        for (const std::uint32_t batch : executor.out) {
            if (!archive.require(batch < batches_.slots() && batches_.live(batch))) return;
        }
    }
    const auto sound = [&](std::uint32_t index) {
        return index == kNoExecutor || index < executors_.size();
    };
    for (std::uint32_t i = 0; Archive::kReads && i < executors_.size(); ++i) {
        executor_by_group_[executors_[i].group] = i;
    }
    for (const ModelState& model : models_) {
        for (const PlacementState& p : model.placements) {
            if (!archive.require(sound(p.executor))) return;
        }
    }
    for (std::uint32_t slot = 0; slot < batches_.slots(); ++slot) {
        if (batches_.live(slot) && !archive.require(sound(batches_[slot].executor))) return;
    }
}

template <class Archive>
void archive_refused(Archive& archive, RefusedLook& refused) {
    archive(refused.changes);
    archive(refused.until);
    archive(refused.deadline);
    archive(refused.fits_from);
    archive(refused.budget_ns);
    archive(refused.retry_at);
    archive_key(archive, refused.group);
    archive(refused.level);
    archive(refused.rows);
}

template <class Archive>
void archive_classes(Archive& archive, std::vector<ClassShare>& classes) {
    auto count = static_cast<std::uint64_t>(classes.size());
    archive(count);
    if (!archive.require(count <= kMeteredLevels)) return;
    classes.resize(count);
    for (ClassShare& share : classes) share.archive(archive);
}

// Domains, components and offers follow from the placements and pools; ticks and rates do not.
// While a change of placements is pending, components are those that the models had before it.
template <class Archive>
void Core::archive_components(Archive& archive) {
    bool pending = rearrange_;
    archive(pending);
    if (Archive::kReads && !pending) {
        rearrange_ = true;
        arrange(0);
        dirty_components_.clear();
    }
    rearrange_ = pending;
    auto count = static_cast<std::uint64_t>(components_.size());
    archive(count);
    if (!archive.require(count <= models_.size() + executors_.size())) return;
    if (Archive::kReads && pending) components_.resize(count);
    if (!archive.require(count == components_.size())) return;
    for (ModelState& model : models_) {
        if (!pending) break;
        archive(model.component);
        if (!archive.require(model.component == kNoSlot || model.component < count)) return;
    }
    for (std::uint32_t index = 0; index < components_.size(); ++index) {
        Component& component = components_[index];
        archive(component.dirty);
        archive(component.tick_at);
        archive(component.metered);
        archive(component.batch_ns);
        for (Hold& hold : component.holds) {
            archive(hold.alone_ns);
            archive(hold.by_means);
            archive(hold.horizon_ns);
        }
        archive(component.look_credit);
        component.backlog.archive_paused(archive);
        std::uint64_t changes = component.backlog.changes();
        archive(changes);
        component.backlog.set_changes(changes);
        component.cursor.archive(archive);
        archive(component.missing_level);
        archive(component.behind);
        component.shares.archive(archive);
        archive(component.batches_since_aged);
        component.aged.archive(archive);
        for (const AgedModels::Entry& aged : component.aged.entries()) {
            if (!archive.require(aged.model < models_.size())) return;
        }
        for (const std::uint32_t model : component.metered) {
            if (!archive.require(model < models_.size())) return;
        }
        if constexpr (Archive::kReads) ticks_.set({component.tick_at, index, index});
    }
    for (ModelState& model : models_) {
        archive_refused(archive, model.refused);
        archive_classes(archive, model.classes);
    }
    archive(dirty_components_);
    for (const std::uint32_t index : dirty_components_) {
        if (!archive.require(index < components_.size())) return;
    }
}

template void Core::archive_queued(ArchiveWriter&);
template void Core::archive_queued(ArchiveReader&);
template void Core::archive_groups(ArchiveWriter&, ModelState&);
template void Core::archive_groups(ArchiveReader&, ModelState&);
template void Core::archive_empty_groups(ArchiveWriter&, ModelState&);
template void Core::archive_empty_groups(ArchiveReader&, ModelState&);
template void Core::archive_executors(ArchiveWriter&);
template void Core::archive_executors(ArchiveReader&);
template void Core::archive_components(ArchiveWriter&);
template void Core::archive_components(ArchiveReader&);

}  // namespace infersched::engine
