// What ModelStatistics shows of a model.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {
namespace {

std::uint64_t elapsed(Nanos from, Nanos to) {
    return static_cast<std::uint64_t>(std::max<Nanos>(to - from, 0));
}

}  // namespace

void Core::count_stats(const RequestRecord& request, const Ending& ending, Nanos now) {
    ModelStats& stats = models_[request.model].stats;
    const std::uint64_t ns = elapsed(request.arrival, now);
    switch (ending.outcome) {
        case Outcome::kCompleted:
            stats.rows += request.rows;
            ++stats.completed;
            stats.completed_ns += ns;
            stats.queue_ns += elapsed(request.arrival, ending.started);
            stats.backend_ns += elapsed(ending.started, now);
            stats.last_answer = now;
            return;
        case Outcome::kCancelled:
            ++stats.cancelled;
            stats.cancelled_ns += ns;
            return;
        case Outcome::kExpired:
            if (ending.reason == Reason::kExpiredInQueue) {
                ++stats.rejected;
                stats.rejected_ns += ns;
                return;
            }
            break;
        default:
            break;
    }
    ++stats.failed;
    stats.failed_ns += ns;
}

void Core::count_execution(const BatchRecord& batch, Nanos started, Nanos now) {
    ModelStats& stats = models_[batch.model].stats;
    ++stats.batches;
    const std::uint32_t rows = std::min(batch.rows, kStatsRowsMax);
    if (rows >= stats.batch_sizes.size()) stats.batch_sizes.resize(rows + 1);
    ++stats.batch_sizes[rows].batches;
    stats.batch_sizes[rows].backend_ns += elapsed(started, now);
}

ModelStats Core::model_stats(std::uint32_t index) const {
    if (index >= models_.size()) return {};
    ModelStats stats = models_[index].stats;
    auto& sizes = stats.batch_sizes;
    for (std::size_t rows = 0; rows < sizes.size(); ++rows) {
        sizes[rows].rows = static_cast<std::uint32_t>(rows);
    }
    const auto unused = [](const BatchSizeStats& size) { return size.batches == 0; };
    sizes.erase(std::remove_if(sizes.begin(), sizes.end(), unused), sizes.end());
    return stats;
}

}  // namespace infersched::engine
