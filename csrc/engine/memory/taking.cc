#include "engine/memory/taking.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/archive.h"

namespace infersched::engine {
namespace {

// Ends that are told apart; further ones count with the last.
constexpr std::size_t kUnseenMax = 64;

}  // namespace

// One more of a size that every instance may have had adds nothing.
void MemoryTaking::end(const MemoryGrowth& growth, std::uint32_t instances, Nanos now) {
    const auto alike = [&](const Unseen& unseen) {
        return unseen.growth.from == growth.from && unseen.growth.to == growth.to;
    };
    const auto first = std::find_if(unseen_.begin(), unseen_.end(), alike);
    if (first != unseen_.end() && std::count_if(first, unseen_.end(), alike) >= instances) {
        unseen_.erase(first);
    }
    if (unseen_.size() < kUnseenMax) {
        unseen_.push_back({now, growth, 1});
        return;
    }
    Unseen& last = unseen_.back();
    last.since = std::max(last.since, now);
    last.growth.from = std::min(last.growth.from, growth.from);
    last.growth.to = std::max(last.growth.to, growth.to);
    last.instances = std::min(last.instances + 1, instances);
}

void MemoryTaking::show(Nanos measured_at) {
    const auto shown = [&](const Unseen& unseen) { return unseen.since < measured_at; };
    for (const Unseen& unseen : unseen_) {
        if (shown(unseen)) shown_ = std::max(shown_, unseen.growth.to);
    }
    unseen_.erase(std::remove_if(unseen_.begin(), unseen_.end(), shown), unseen_.end());
}

void MemoryTaking::count(const std::vector<MemoryGrowth>& out, const MemoryNeed& need,
                         double shown) {
    bytes_ = 0;
    full_ = false;
    if (out.empty() && unseen_.empty()) return;
    std::vector<double> from;
    std::vector<double> to;
    const auto add = [&](const MemoryGrowth& growth) {
        from.push_back(std::max(growth.from, shown));
        to.push_back(std::max(growth.to, shown));
    };
    for (const MemoryGrowth& growth : out) add(growth);
    for (const Unseen& unseen : unseen_) {
        for (std::uint32_t i = 0; i < unseen.instances; ++i) add(unseen.growth);
    }
    const std::size_t count = std::min<std::size_t>(need.on_device(), to.size());
    const auto last = static_cast<std::ptrdiff_t>(count);
    std::partial_sort(from.begin(), from.begin() + last, from.end());
    std::partial_sort(to.begin(), to.begin() + last, to.end(), std::greater<>());
    double bytes = 0;
    for (std::size_t i = 0; i < count; ++i) {
        bytes += need.added_bytes(to[i], 0) - need.added_bytes(from[i], 0);
    }
    bytes_ = static_cast<std::uint64_t>(std::ceil(std::max(bytes, 0.0)));
    full_ = count == need.on_device();
    last_ = {from[count - 1], to[count - 1]};
}

double MemoryTaking::size_within(double bytes, const MemoryNeed& need, double mark) const {
    if (!full_) return std::max(mark, need.size_within(bytes, mark));
    // After a failure, less is certain than was before.
    if (mark < last_.from) {
        bytes -= need.added_bytes(last_.from, 0) - need.added_bytes(mark, 0);
    }
    return std::max(mark, need.size_within(bytes, std::max(mark, last_.to)));
}

template <class Archive>
void MemoryTaking::archive(Archive& archive) {
    archive(bytes_);
    archive(full_);
    archive(shown_);
    archive(last_.from);
    archive(last_.to);
    archive.vector_size(unseen_, 28);
    for (Unseen& unseen : unseen_) {
        archive(unseen.since);
        archive(unseen.growth.from);
        archive(unseen.growth.to);
        archive(unseen.instances);
    }
}

template void MemoryTaking::archive(ArchiveWriter&);
template void MemoryTaking::archive(ArchiveReader&);

}  // namespace infersched::engine
