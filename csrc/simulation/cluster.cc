#include "simulation/cluster.h"

#include <algorithm>
#include <utility>

#include "simulation/execution.h"

namespace infersched::simulation {

namespace {

constexpr std::uint64_t kFailureStream = 0x6661696c00000000u;

}  // namespace

Cluster::Cluster(const Scenario& scenario)
    : scenario_(&scenario),
      executors_(scenario.executors),
      idle_count_(scenario.executors),
      noise_(scenario.seed ^ kNoiseStream),
      failures_(scenario.seed ^ kFailureStream) {
    metrics_.models.resize(scenario.models.size());
    const auto some = [](const ExecutorSetup& setup) { return !setup.holds_all; };
    if (std::none_of(scenario.setups.begin(), scenario.setups.end(), some)) return;
    for (std::uint32_t e = 0; e < scenario.executors; ++e) {
        for (std::uint32_t m = 0; m < scenario.models.size(); ++m) {
            held_.push_back(simulation::holds(scenario, e, m));
        }
    }
}

std::uint32_t Cluster::first_idle(std::uint32_t model) const {
    if (idle_count_ == 0) return executors();
    std::uint32_t executor = 0;
    while (executor < executors() && !(idle(executor) && holds(executor, model))) ++executor;
    return executor;
}

void Cluster::dispatch(std::uint32_t executor, std::uint32_t model,
                       std::vector<RequestId> requests) {
    Batch batch;
    batch.model = model;
    batch.requests = std::move(requests);
    if (executors_[executor].busy) {
        executors_[executor].staged.push_back(std::move(batch));
    } else {
        --idle_count_;
        start(executor, std::move(batch));
    }
}

void Cluster::start(std::uint32_t executor, Batch batch) {
    batch.started_ns = now_;
    batch.ends_ns = now_ + execution_ns(*scenario_, batch.model, batch.requests.size(), noise_,
                                        slowdown(*scenario_, executor, now_));
    Executor& on = executors_[executor];
    on.busy = true;
    on.running = std::move(batch);
    events_.push(on.running.ends_ns, EventKind::kBatchEnd, executor, ++on.generation);
    if (now_ < scenario_->warm_up_ns) return;
    ModelMetrics& counts = metrics_.models[on.running.model];
    ++counts.batches;
    counts.batched_rows += on.running.requests.size();
}

void Cluster::drop(RequestId id) { settle(id, &ModelMetrics::dropped); }

std::vector<RequestId> Cluster::preempt(std::uint32_t executor) {
    Executor& on = executors_[executor];
    ++on.generation;
    on.busy = false;
    ++idle_count_;
    ++metrics_.preempted;
    return std::move(on.running.requests);
}

std::vector<RequestId> Cluster::spare() {
    if (spares_.empty()) return {};
    std::vector<RequestId> taken = std::move(spares_.back());
    spares_.pop_back();
    return taken;
}

void Cluster::recycle(std::vector<RequestId> requests) {
    requests.clear();
    spares_.push_back(std::move(requests));
}

RequestId Cluster::arrive(std::uint32_t model, bool counted) {
    RequestId id = static_cast<RequestId>(requests_.size());
    if (free_.empty()) {
        requests_.emplace_back();
    } else {
        id = free_.back();
        free_.pop_back();
    }
    const Nanos deadline = add_saturating(now_, objective_ns(model));
    requests_[id] = {now_, deadline, model, counted, true};
    ++metrics_.arrived;
    metrics_.count(*scenario_, now_, counted, &Interval::offered);
    if (counted) ++metrics_.models[model].offered;
    return id;
}

Batch Cluster::finish(std::uint32_t executor, std::uint64_t generation, bool* ended) {
    Executor& on = executors_[executor];
    *ended = on.busy && on.generation == generation;
    if (!*ended) return {};
    Batch batch = std::move(on.running);
    const bool failed = executor < scenario_->setups.size() &&
                        scenario_->setups[executor].failing > 0 &&
                        failures_.unit() <= scenario_->setups[executor].failing;
    for (const RequestId id : batch.requests) {
        const bool in_time = !failed && now_ <= requests_[id].deadline_ns;
        settle(id, in_time ? &ModelMetrics::in_time : &ModelMetrics::late);
    }
    if (on.staged.empty()) {
        on.busy = false;
        ++idle_count_;
    } else {
        Batch next = std::move(on.staged.front());
        on.staged.pop_front();
        start(executor, std::move(next));
    }
    return batch;
}

void Cluster::lose(Batch batch) {
    for (const RequestId id : batch.requests) settle(id, &ModelMetrics::late);
    recycle(std::move(batch.requests));
}

void Cluster::stop(std::uint32_t executor) {
    Executor& on = executors_[executor];
    on.down = true;
    ++on.generation;
    if (!on.busy) {
        --idle_count_;
        return;
    }
    on.busy = false;
    lose(std::move(on.running));
    for (Batch& batch : on.staged) lose(std::move(batch));
    on.staged.clear();
}

void Cluster::resume(std::uint32_t executor) {
    executors_[executor].down = false;
    ++idle_count_;
}

void Cluster::settle(RequestId id, std::uint64_t ModelMetrics::*as) {
    Request& request = requests_[id];
    request.open = false;
    free_.push_back(id);
    if (as == &ModelMetrics::in_time) {
        metrics_.count(*scenario_, request.arrived_ns, request.counted, &Interval::in_time);
    }
    if (!request.counted) return;
    ++(metrics_.models[request.model].*as);
    if (as != &ModelMetrics::in_time) ++misses_;
}

void Cluster::close() {
    for (Request& request : requests_) {
        if (!request.open || !request.counted) continue;
        request.open = false;
        ++metrics_.models[request.model].late;
        ++misses_;
    }
    metrics_.ended_ns = now_;
}

}  // namespace infersched::simulation
