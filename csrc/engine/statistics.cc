// What ModelStatistics shows of a model.
#include <algorithm>

#include "engine/core.h"

namespace infersched::engine {

void Core::count_completions(ModelState& model, const Completions& done, Nanos started, Nanos now) {
    ModelStats& stats = model.stats;
    const Nanos ran_ns = done.requests * (now - started);
    stats.rows += done.rows;
    stats.completed += static_cast<std::uint64_t>(done.requests);
    stats.completed_ns += static_cast<std::uint64_t>(done.waited_ns);
    stats.queue_ns += static_cast<std::uint64_t>(done.waited_ns - ran_ns);
    stats.backend_ns += static_cast<std::uint64_t>(ran_ns);
    stats.last_answer = now;
}

void Core::count_incomplete(const RequestRecord& request, const Ending& ending, Nanos now) {
    ModelStats& stats = models_[request.model].stats;
    const auto ns = static_cast<std::uint64_t>(std::max<Nanos>(now - request.arrival, 0));
    if (ending.outcome == Outcome::kCancelled) {
        ++stats.cancelled;
        stats.cancelled_ns += ns;
    } else if (ending.reason == Reason::kExpiredInQueue) {
        ++stats.rejected;
        stats.rejected_ns += ns;
    } else {
        ++stats.failed;
        stats.failed_ns += ns;
    }
}

void Core::count_execution(ModelState& model, std::uint32_t rows, Nanos ran_ns) {
    ModelStats& stats = model.stats;
    ++stats.batches;
    const std::uint32_t size = std::min(rows, kStatsRowsMax);
    if (size >= stats.batch_sizes.size()) stats.batch_sizes.resize(size + 1);
    ++stats.batch_sizes[size].batches;
    stats.batch_sizes[size].backend_ns += static_cast<std::uint64_t>(ran_ns);
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
