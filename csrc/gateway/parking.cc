#include "gateway/parking.h"

#include <algorithm>

namespace infersched::gateway {

void Parking::apply(const std::vector<LoadableModel>& loadable, const Models& models,
                    const std::vector<bool>& available) {
    for (auto& [name, model] : models_) model.listed = false;
    for (const LoadableModel& wanted : loadable) {
        LoadingModel& model = models_[wanted.name];
        model.listed = true;
        model.wanted = wanted;
    }
    look_up(models, available);
    diverted_.clear();
    for (auto entry = models_.begin(); entry != models_.end();) {
        LoadingModel& model = entry->second;
        if (!model.listed && model.waiting == 0) {
            entry = models_.erase(entry);
            continue;
        }
        // Who comes or waits after that wants another load.
        if (!model.missing() || !model.wanted.error.empty()) model.told = false;
        divert(model);
        ++entry;
    }
    find_due();
}

void Parking::look_again(const Models& models, const std::vector<bool>& available) {
    if (calls_.size() == 0) return;
    look_up(models, available);
    find_due();
}

// Which versions the catalog has, and whether any can be run.
void Parking::look_up(const Models& models, const std::vector<bool>& available) {
    if (models_.empty()) return;
    for (auto& [name, model] : models_) {
        model.versions.clear();
        model.ready = model.usable = false;
    }
    for (const std::shared_ptr<const ModelConfig>& config : models) {
        const auto found = models_.find(config->schema.name);
        if (found == models_.end()) continue;
        LoadingModel& model = found->second;
        model.versions.push_back(config->index);
        if (!config->policy.admitting) continue;
        for (const engine::Placement& placement : config->placements) {
            const std::uint32_t backend = placement.backend;
            model.ready |= placement.ready;
            model.usable |= placement.ready && backend < available.size() && available[backend];
        }
    }
}

void Parking::divert(const LoadingModel& model) {
    const bool diverted = model.missing() || model.waiting > 0;
    for (const std::uint32_t version : model.versions) {
        if (diverted && version >= diverted_.size()) diverted_.resize(version + 1);
        if (version < diverted_.size()) diverted_[version] = diverted ? 1 : 0;
    }
}

void Parking::drain() {
    draining_ = true;
    find_due();
}

void Parking::find_due() {
    due_.clear();
    for (auto& [name, model] : models_) {
        const bool failed = model.missing() && !model.wanted.error.empty();
        model.due = draining_ || !model.listed || model.usable || failed;
        if (model.due && model.waiting > 0) due_.push_back(&model);
    }
}

LoadingModel* Parking::awaited(std::string_view name) {
    const auto found = models_.find(name);
    if (found == models_.end()) return nullptr;
    LoadingModel& model = found->second;
    return model.missing() || model.waiting > 0 ? &model : nullptr;
}

ParkedId Parking::park(ParkedCall&& parked) {
    LoadingModel& model = *parked.model;
    const ParkedId id = calls_.emplace(std::move(parked));
    ParkedCall& call = *calls_.find(id);
    call.before = model.last;
    call.after = 0;
    if (model.last != 0) calls_.find(model.last)->after = id;
    model.last = id;
    if (model.first == 0) model.first = id;
    ++model.waiting;
    model.bytes += call.bytes;
    bytes_ += call.bytes;
    if (call.deadline != kNever) deadlines_.emplace(call.deadline, id);
    return id;
}

void Parking::add_bytes(ParkedId id, std::uint64_t bytes) {
    ParkedCall& call = *calls_.find(id);
    call.bytes += bytes;
    call.model->bytes += bytes;
    bytes_ += bytes;
}

ParkedCall Parking::take(ParkedId id) {
    ParkedCall call = std::move(*calls_.find(id));
    calls_.erase(id);
    LoadingModel& model = *call.model;
    (call.before == 0 ? model.first : calls_.find(call.before)->after) = call.after;
    (call.after == 0 ? model.last : calls_.find(call.after)->before) = call.before;
    if (call.deadline != kNever) deadlines_.erase({call.deadline, id});
    model.bytes -= call.bytes;
    bytes_ -= call.bytes;
    if (--model.waiting > 0) return call;
    if (model.due) due_.erase(std::find(due_.begin(), due_.end(), &model));
    divert(model);
    if (model.listed) return call;
    call.model = nullptr;
    models_.erase(models_.find(model.wanted.name));
    return call;
}

ParkedId Parking::expired(Nanos now) const {
    return next_deadline() <= now ? deadlines_.begin()->second : 0;
}

ParkedId Parking::due() {
    if (due_.empty()) return 0;
    turn_ = turn_ + 1 < due_.size() ? turn_ + 1 : 0;
    return due_[turn_]->first;
}

}  // namespace infersched::gateway
