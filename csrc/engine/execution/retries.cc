// Groups that are sent again after a failure, bisecting of rejected batches, suspect signatures.
//
// A failed batch is sent again as it was: the same members in the same order, before other work. It
// is not put back into its queue, where a poisonous request would meet new neighbours.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {

void Core::retry_group(ModelState& model, const BatchRecord& failed,
                       const std::vector<BatchMember>& group, std::uint32_t tries) {
    const std::uint32_t slot = batches_.add();
    BatchRecord& batch = batches_[slot];
    batch.model = failed.model;
    batch.pin = failed.pin;
    batch.avoid = failed.backend;
    batch.signature = failed.signature;
    batch.mergeable = failed.mergeable;
    batch.row_size = failed.row_size;
    batch.reserve = failed.reserve;
    batch.half = failed.half;
    batch.cut_backend = failed.cut_backend;
    batch.cap_before = failed.cap_before;
    batch.memory_tries = failed.memory_tries;
    batch.retried = true;
    batch.tries = tries;
    batch.retry_sequence = ++retry_sequence_;
    batch.members = group;
    batch.live = static_cast<std::uint32_t>(group.size());
    for (const BatchMember& member : group) {
        requests_[static_cast<std::uint32_t>(member.request)].batches.push_back(slot);
    }
    model.pool(batch.pin).retries.insert({batch.retry_sequence, slot});
}

// Members [begin, end) go again, in groups the model can take now: alone when it does not merge.
// What a batch that ran out of memory may have taken does not count against its halves.
void Core::retry(ModelState& model, const BatchRecord& failed, std::size_t begin, std::size_t end,
                 std::uint32_t tries) {
    const bool together = model.splits(failed.mergeable);
    std::uint32_t limit = 0xffffffffu;
    if (together) {
        std::uint32_t allowed = memory_limit(model, failed.row_size).rows.single;
        if (failed.half) allowed = std::max(allowed, (failed.rows + 1) / 2);
        limit = rows_limit(model.policy, allowed);
    }
    std::vector<BatchMember> group;
    std::uint32_t rows = 0;
    const auto close = [&] {
        if (!group.empty()) retry_group(model, failed, group, tries);
        group.clear();
        rows = 0;
    };
    for (std::size_t i = begin; i < end; ++i) {
        BatchMember member = failed.members[i];
        if (!together || member.rows > limit - rows) close();
        for (; member.rows > limit; member.rows -= limit, member.row_begin += limit) {
            BatchMember part = member;
            part.rows = limit;
            group.push_back(part);
            close();
        }
        group.push_back(member);
        rows += member.rows;
    }
    close();
}

void Core::drop_retry(std::uint32_t slot, Nanos now) {
    const BatchRecord& batch = batches_[slot];
    models_[batch.model].pool(batch.pin).retries.erase({batch.retry_sequence, slot});
    mark_dirty(batch.model);
    release_hold(slot, now);
    batches_.remove(slot);
}

// After a change of policy: groups that have become too large are cut. One that is to be alone
// cannot be.
void Core::rebuild_retries(ModelState& model) {
    model.each_pool([&](Pool& pool) {
        const auto waiting = pool.retries;
        pool.retries.clear();
        for (const auto& [sequence, slot] : waiting) {
            if (batches_[slot].alone) {
                pool.retries.insert({sequence, slot});
                continue;
            }
            BatchRecord old = batches_[slot];
            old.members = detach(slot);
            old.backend = old.avoid;
            batches_.remove(slot);
            retry(model, old, 0, old.members.size(), old.tries);
        }
    });
}

// Sends both halves of a rejected batch again, if the budget allows it.
bool Core::bisect(ModelState& model, const BatchRecord& failed) {
    const std::size_t count = failed.members.size();
    const std::int32_t cost = (count > 1 ? 2 : 1) * kBisectCostTenths;
    if (model.bisect_tenths < cost) return false;
    model.bisect_tenths -= cost;
    ++counters(failed.model).bisected_batches;
    const std::size_t half = (count + 1) / 2;
    // The backend did nothing wrong: it may run the halves.
    BatchRecord halves = failed;
    halves.backend = kNoBackend;
    retry(model, halves, 0, half, failed.tries);
    retry(model, halves, half, count, failed.tries);
    return true;
}

bool Core::unmerged(const ModelState& model, std::uint64_t signature, Nanos now) const {
    for (const Suspect& suspect : model.suspects) {
        if (suspect.signature == signature) return now < suspect.until;
    }
    return false;
}

// Four rejected batches with fewer than eight good ones for each: the signature runs unmerged for a
// while, and again after one more rejection.
void Core::suspect_failed(ModelState& model, std::uint64_t signature, Nanos now) {
    auto& suspects = model.suspects;
    auto found = std::find_if(suspects.begin(), suspects.end(),
                              [&](const Suspect& s) { return s.signature == signature; });
    if (found == suspects.end()) {
        if (suspects.size() == kSuspectsMax) suspects.erase(suspects.begin());
        suspects.push_back({signature, 0, std::numeric_limits<Nanos>::min()});
        found = suspects.end() - 1;
    }
    found->score += kSuspectFailure;
    if (found->score < kSuspectUnmerged) return;
    found->score = kSuspectUnmerged - kSuspectFailure;
    found->until = add_saturating(now, kUnmergedNs);
}

void Core::suspect_good(ModelState& model, std::uint64_t signature) {
    auto& suspects = model.suspects;
    for (std::size_t i = 0; i < suspects.size(); ++i) {
        if (suspects[i].signature != signature) continue;
        if (--suspects[i].score <= 0) suspects.erase(suspects.begin() + static_cast<long>(i));
        return;
    }
}

}  // namespace infersched::engine
