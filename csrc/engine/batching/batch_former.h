// How many rows a batch takes and when a queue is worth a batch: pure functions of policy and rows.
#pragma once

#include <cstdint>

#include "engine/engine.h"

namespace infersched::engine {

// Requests that did not fit and were passed over, before a batch stops looking further.
inline constexpr std::uint32_t kPassedOverMax = 8;

// A policy made safe: rows_max >= 1, sizes sorted, unique and within 1..rows_max, levels >= 1.
ModelPolicy normalised(ModelPolicy policy);

// The largest batch that can be sent: rows_max, or the largest mandatory size.
std::uint32_t rows_limit(const ModelPolicy& policy);

// The same, where device memory allows no more than `rows_allowed`: the smallest mandatory size is
// sent all the same.
std::uint32_t rows_limit(const ModelPolicy& policy, std::uint32_t rows_allowed);

// From this many queued rows on, waiting for more cannot make a better batch.
std::uint32_t rows_enough(const ModelPolicy& policy);

// A batch of this many rows is a full one.
std::uint32_t rows_full(const ModelPolicy& policy);

// Where to stop filling when `rows_queued` of one signature are there: the largest preferred size
// they fill, then the largest mandatory size they fill, otherwise the limit, as allowed.
std::uint32_t fill_limit(const ModelPolicy& policy, std::uint64_t rows_queued,
                         std::uint32_t rows_allowed);

// Rows to send for `rows` gathered: the next mandatory size.
std::uint32_t padded_rows(const ModelPolicy& policy, std::uint32_t rows);

}  // namespace infersched::engine
