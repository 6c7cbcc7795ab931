#include "engine/batching/batch_former.h"

#include <algorithm>
#include <vector>

#include "engine/queues/priorities.h"
#include "engine/triton/queue.h"

namespace infersched::engine {
namespace {

void make_sizes_safe(std::vector<std::uint32_t>& sizes, std::uint32_t rows_max) {
    sizes.erase(std::remove_if(sizes.begin(), sizes.end(),
                               [=](std::uint32_t size) { return size == 0 || size > rows_max; }),
                sizes.end());
    std::sort(sizes.begin(), sizes.end());
    sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
}

// The largest size <= rows, or 0.
std::uint32_t largest_filled(const std::vector<std::uint32_t>& sizes, std::uint64_t rows) {
    const auto above = std::upper_bound(sizes.begin(), sizes.end(), rows);
    return above == sizes.begin() ? 0 : *(above - 1);
}

}  // namespace

ModelPolicy normalised(ModelPolicy policy) {
    policy.rows_max = std::max(policy.rows_max, 1u);
    normalise_levels(policy);
    policy.queue_delay_max_ns = std::max<Nanos>(policy.queue_delay_max_ns, 0);
    policy.sequence_idle_ns = std::max<Nanos>(policy.sequence_idle_ns, 0);
    policy.merge = policy.merge && policy.direct_max == 0;
    if (policy.direct_max > 0 || policy.sequence_idle_ns > 0) policy.triton.reset();
    if (policy.triton != nullptr) {
        policy.preferred_rows.clear();
        policy.mandatory_rows.clear();
        policy.levels.clear();
        policy.queue_delay_max_ns = 0;
        policy.triton = std::make_shared<const TritonBatching>(
            normalised(TritonBatching(*policy.triton), policy.rows_max));
    }
    make_sizes_safe(policy.preferred_rows, policy.rows_max);
    make_sizes_safe(policy.mandatory_rows, policy.rows_max);
    return policy;
}

std::uint32_t rows_limit(const ModelPolicy& policy) {
    return policy.mandatory_rows.empty() ? policy.rows_max : policy.mandatory_rows.back();
}

std::uint32_t rows_limit(const ModelPolicy& policy, std::uint32_t rows_allowed) {
    const std::uint32_t limit = rows_limit(policy);
    if (rows_allowed >= limit) return limit;
    if (policy.mandatory_rows.empty()) return std::max(rows_allowed, 1u);
    const std::uint32_t size = largest_filled(policy.mandatory_rows, rows_allowed);
    return size > 0 ? size : policy.mandatory_rows.front();
}

std::uint32_t rows_enough(const ModelPolicy& policy) {
    const std::uint32_t limit = rows_limit(policy);
    return policy.preferred_rows.empty() ? limit : std::min(policy.preferred_rows.front(), limit);
}

std::uint32_t rows_full(const ModelPolicy& policy) {
    const std::uint32_t limit = rows_limit(policy);
    return policy.preferred_rows.empty() ? limit : std::min(policy.preferred_rows.back(), limit);
}

std::uint32_t fill_limit(const ModelPolicy& policy, std::uint64_t rows_queued,
                         std::uint32_t rows_allowed) {
    std::uint32_t limit = rows_limit(policy, rows_allowed);
    const auto reachable = [&] { return std::min<std::uint64_t>(rows_queued, limit); };
    if (const std::uint32_t size = largest_filled(policy.preferred_rows, reachable())) limit = size;
    if (const std::uint32_t size = largest_filled(policy.mandatory_rows, reachable())) limit = size;
    return limit;
}

std::uint32_t padded_rows(const ModelPolicy& policy, std::uint32_t rows) {
    const auto& sizes = policy.mandatory_rows;
    const auto next = std::lower_bound(sizes.begin(), sizes.end(), rows);
    return next == sizes.end() ? rows : *next;
}

}  // namespace infersched::engine
