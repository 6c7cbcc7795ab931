#include "engine/execution/placements.h"

#include <algorithm>

namespace infersched::engine {
namespace {
constexpr std::uint32_t kRestDoublingsMax = 7;
}  // namespace

Nanos averaged(Nanos average, Nanos sample) {
    return average == 0 ? sample : average + (sample - average) / 8;
}

// All the batches that one lost connection takes along are one failure.
void PlacementState::rest(Nanos now) {
    if (resting(now)) return;
    const std::uint32_t doublings = std::min(failures, kRestDoublingsMax);
    rest_until = add_saturating(now, std::min(kRestMinNs << doublings, kRestMaxNs));
    ++failures;
}

void PlacementState::note_doubt(Nanos now) {
    if (failures + 1 >= kDoubtsMax) return rest(now);
    ++failures;
}

void PlacementState::observe(Nanos ran_ns, std::uint32_t rows) {
    batch_ns = averaged(batch_ns, ran_ns);
    ns_per_row = std::max<Nanos>(averaged(ns_per_row, ran_ns / std::max(rows, 1u)), 1);
}

bool share_devices(const PlacementState& a, const PlacementState& b) {
    return std::any_of(a.devices.begin(), a.devices.end(), [&](std::uint32_t device) {
        return std::find(b.devices.begin(), b.devices.end(), device) != b.devices.end();
    });
}

Nanos stage_at(const PlacementState& placement, std::uint32_t staged_batches_max,
               Nanos oldest_start) {
    const std::size_t staged = placement.out.size() - placement.instances;
    if (staged >= staged_batches_max || placement.batch_ns == 0) return kNever;
    const Nanos turns = static_cast<Nanos>(staged) * placement.batch_ns / placement.instances;
    return add_saturating(oldest_start, placement.batch_ns + turns) - kStageAheadNs;
}

bool worth_staging(std::uint64_t rows_queued, std::uint32_t rows_full, std::uint64_t rows_out) {
    return rows_queued >= rows_full || (2 * rows_queued >= rows_full && rows_queued >= rows_out);
}

std::uint64_t expected_completion_ns(const PlacementState& placement, std::uint32_t rows) {
    __extension__ using Wide = unsigned __int128;
    const Wide work = static_cast<Wide>(placement.rows_out + rows) *
                      static_cast<std::uint64_t>(placement.ns_per_row) / placement.instances;
    return static_cast<std::uint64_t>(std::min<Wide>(work, ~0ull));
}

}  // namespace infersched::engine
