// Writes the counters page.
#include <algorithm>

#include "engine/core.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {
namespace {

// The least i with 2^i >= value.
std::size_t ceil_log2(std::uint64_t value) {
    return value <= 1 ? 0 : 64 - static_cast<std::size_t>(__builtin_clzll(value - 1));
}

void record(DurationHistogram& histogram, Nanos duration) {
    const auto ns = static_cast<std::uint64_t>(std::max<Nanos>(duration, 0));
    const std::uint64_t units = (ns + kFirstDurationBoundNs - 1) / kFirstDurationBoundNs;
    ++histogram.counts[std::min(ceil_log2(units), kDurationBuckets - 1)];
    histogram.sum_ns += ns;
}

void record(RowHistogram& histogram, std::uint32_t rows) {
    ++histogram.counts[std::min(ceil_log2(rows), kRowBuckets - 1)];
    histogram.sum_rows += rows;
}

std::uint64_t& of_outcome(ModelCounters& page, Outcome outcome) {
    switch (outcome) {
        case Outcome::kCompleted:
            return page.completed;
        case Outcome::kExpired:
            return page.expired;
        case Outcome::kCancelled:
            return page.cancelled;
        default:
            return page.failed;
    }
}

}  // namespace

BackendCounters* Core::backend_counters(std::uint32_t backend) {
    return backend < kCountersBackendsMax ? &page_->backends[backend] : nullptr;
}

void Core::count_answer(const RequestRecord& request, const Ending& ending, Nanos now) {
    ModelCounters& page = counters(request.model);
    ++of_outcome(page, ending.outcome);
    --page.in_flight;
    ++page.outcomes[static_cast<std::size_t>(ending.outcome)]
                   [static_cast<std::size_t>(ending.reason)];
    const bool completed = ending.outcome == Outcome::kCompleted;
    if (completed) {
        record(page.request_time, now - request.arrival);
    } else {
        count_incomplete(request, ending, now);
    }
    // A client that went away did not wait for its objective.
    if (request.deadline == kNever || ending.outcome == Outcome::kCancelled) return;
    LevelCounters& of_level = count_slo(page, request.asked_level);
    const bool in_time = completed && now <= request.deadline;
    if (completed || ending.outcome == Outcome::kExpired) {
        count_objective(models_[request.model], request, completed, in_time, now);
    }
    if (!in_time) return;
    ++page.slo_good;
    ++of_level.slo_good;
}

void Core::count_queue_wait(const RequestRecord& request, Nanos now) {
    record(counters(request.model).queue_wait, now - request.arrival);
}

void Core::count_dispatch(const ModelState& model, const BatchRecord& batch) {
    ModelCounters& page = counters(batch.model);
    ++page.batches;
    page.batch_rows_capacity += rows_limit(model.policy);
    record(page.batch_rows, batch.rows);
    ++page.inflight_batches;
    if (batch.retried) ++page.retried_batches;
    if (BackendCounters* backend = backend_counters(batch.backend)) {
        ++backend->batches;
        backend->rows += batch.rows;
        ++backend->inflight_batches;
        backend->inflight_rows += batch.rows;
    }
}

void Core::count_departure(const BatchRecord& batch) {
    --counters(batch.model).inflight_batches;
    if (BackendCounters* backend = backend_counters(batch.backend)) {
        --backend->inflight_batches;
        backend->inflight_rows -= batch.rows;
    }
}

void Core::count_reply(const BatchRecord& batch, Nanos now) {
    record(counters(batch.model).backend_time, now - batch.dispatched_at);
}

void Core::count_failure(const BatchRecord& batch) {
    if (BackendCounters* backend = backend_counters(batch.backend)) ++backend->failed_batches;
}

QueueStatus Core::queue_status(std::uint32_t index) const {
    if (index >= models_.size()) return {0, 0, 0, kNever, 0, false};
    const ModelState& model = models_[index];
    const std::uint32_t first = model.by_age.first;
    const Nanos oldest = first == kNoSlot ? kNever : requests_[first].arrival;
    return {model.waiting.total(),  model.queued_rows, model.waiting.bytes(), oldest,
            model.inflight_batches, model.merging()};
}

void Core::publish_queue(std::uint32_t index) {
    const ModelState& model = models_[index];
    ModelCounters& page = counters(index);
    page.queued_requests = model.waiting.total();
    page.queued_rows = model.queued_rows;
    page.queued_bytes = model.waiting.bytes();
    const std::uint32_t oldest = model.by_age.first;
    page.oldest_arrival_ns =
        oldest == kNoSlot ? 0 : static_cast<std::uint64_t>(requests_[oldest].arrival);
}

}  // namespace infersched::engine
