#include "engine/queues/queue.h"

#include <algorithm>

namespace infersched::engine {

std::uint32_t GroupTable::get(GroupKey key) {
    if (last_ != kNoSlot && last_key_ == key) return last_;
    last_key_ = key;
    const auto found = by_key_.find(key);
    if (found != by_key_.end()) return last_ = found->second;
    std::uint32_t group = 0;
    if (free_.empty()) {
        group = slots();
        groups_.emplace_back();
    } else {
        group = free_.back();
        free_.pop_back();
    }
    groups_[group].key = key;
    by_key_.emplace(key, group);
    return last_ = group;
}

std::uint32_t GroupTable::find(const GroupKey& key) const {
    if (last_ != kNoSlot && last_key_ == key) return last_;
    const auto found = by_key_.find(key);
    return found == by_key_.end() ? kNoSlot : found->second;
}

void GroupTable::release(std::uint32_t group) {
    if (!emptied_.empty() && emptied_.back() == group) return;
    emptied_.push_back(group);
    while (emptied_.size() > kEmptyGroupsMax) {
        const std::uint32_t oldest = emptied_.front();
        emptied_.pop_front();
        // Refilled since, or emptied again and listed further behind.
        if (!groups_[oldest].order.empty()) continue;
        if (std::find(emptied_.begin(), emptied_.end(), oldest) != emptied_.end()) continue;
        by_key_.erase(groups_[oldest].key);
        groups_[oldest].key = GroupKey{};
        groups_[oldest].rate.reset();
        unmeter(oldest);
        groups_[oldest].mix = LevelMix();
        groups_[oldest].level_targets.fill(0);
        groups_[oldest].budget_ns = 0;
        groups_[oldest].target = 1;
        groups_[oldest].awaited = 1;
        groups_[oldest].rows_fit = Group().rows_fit;
        groups_[oldest].gather_ns = 0;
        groups_[oldest].reserve = Reserve();
        free_.push_back(oldest);
        if (last_ == oldest) last_ = kNoSlot;
    }
}

bool GroupTable::meter(std::uint32_t group) {
    if (groups_[group].metered) return true;
    if (metered_count_ >= kMeteredGroupsMax) return false;
    if (metered_.size() >= 2 * kMeteredGroupsMax) metered();
    groups_[group].metered = true;
    ++metered_count_;
    metered_.push_back(group);
    metered_changed_ = true;
    return true;
}

void GroupTable::unmeter(std::uint32_t group) {
    if (!groups_[group].metered) return;
    groups_[group].metered = false;
    --metered_count_;
    metered_changed_ = true;
}

const std::vector<std::uint32_t>& GroupTable::metered() {
    if (!metered_changed_) return metered_;
    metered_changed_ = false;
    std::sort(metered_.begin(), metered_.end());
    metered_.erase(std::unique(metered_.begin(), metered_.end()), metered_.end());
    const auto left = [this](std::uint32_t group) { return !groups_[group].metered; };
    metered_.erase(std::remove_if(metered_.begin(), metered_.end(), left), metered_.end());
    return metered_;
}

}  // namespace infersched::engine
