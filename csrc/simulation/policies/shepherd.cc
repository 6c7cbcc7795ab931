// Shepherd's Flex (Zhang et al. 2023): the largest batch first, and a running batch gives way to
// one that is larger by a constant factor.
//
// A batch has the requests with the earliest deadlines, as many as its earliest deadline allows;
// requests that could not finish even alone are dropped. An idle executor takes the largest batch
// over all models, models with equally large ones in their order. Where none is idle, an arrival
// looks at the smallest running batch of its own model: stopped and filled up from the queue, would
// it be larger by the factor? Then its work is lost, and that batch starts. All models are of one
// group.

#include <algorithm>

#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

constexpr double kPreemptFactor = 3.03;

class Shepherd : public Policy {
  public:
    void begin(Cluster& cluster) override { queues_.resize(cluster.models()); }
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t, const Batch&) override { serve(cluster); }
    void timer(Cluster& cluster) override { serve(cluster); }

  private:
    // Rows of the batch a model could start now.
    std::size_t feasible(Cluster& cluster, std::uint32_t model);
    // The same with the requests of a running batch, which is stopped.
    std::size_t feasible_with(const Cluster& cluster, const Batch& running) const;
    void serve(Cluster& cluster);
    // The smaller one; of equal ones that with less work to lose.
    static bool gives_way_before(const Batch& a, const Batch& b);
    void preempt_for(Cluster& cluster, std::uint32_t model);

    std::vector<Waiting> queues_;
};

void Shepherd::arrived(Cluster& cluster, RequestId id) {
    const std::uint32_t model = cluster.request(id).model;
    queues_[model].add(cluster, id);
    if (cluster.can_start(model)) {
        serve(cluster);
    } else {
        preempt_for(cluster, model);
    }
}

std::size_t Shepherd::feasible(Cluster& cluster, std::uint32_t model) {
    Waiting& queue = queues_[model];
    const Latency& latency = cluster.latency(model);
    const Nanos now = cluster.now();
    while (!queue.empty() && now + latency.at(1) > queue.deadline(0)) queue.drop_front(cluster);
    if (queue.empty()) return 0;
    return std::min(latency.rows_within(queue.deadline(0) - now), queue.size());
}

std::size_t Shepherd::feasible_with(const Cluster& cluster, const Batch& running) const {
    const Waiting& queue = queues_[running.model];
    Nanos earliest = queue.empty() ? kNever : queue.deadline(0);
    for (const RequestId id : running.requests) {
        earliest = std::min(earliest, cluster.request(id).deadline_ns);
    }
    const std::size_t all = running.requests.size() + queue.size();
    return std::min(cluster.latency(running.model).rows_within(earliest - cluster.now()), all);
}

void Shepherd::serve(Cluster& cluster) {
    while (cluster.idle_count() > 0) {
        std::uint32_t chosen = 0;
        std::size_t rows = 0;
        for (std::uint32_t m = 0; m < queues_.size(); ++m) {
            if (queues_[m].empty() || !cluster.can_start(m)) continue;
            const std::size_t candidate = feasible(cluster, m);
            if (candidate <= rows) continue;
            chosen = m;
            rows = candidate;
        }
        if (rows == 0) return;
        cluster.dispatch(cluster.first_idle(chosen), chosen,
                         queues_[chosen].take(cluster, 0, rows));
    }
}

bool Shepherd::gives_way_before(const Batch& a, const Batch& b) {
    if (a.requests.size() != b.requests.size()) return a.requests.size() < b.requests.size();
    return a.started_ns > b.started_ns;
}

void Shepherd::preempt_for(Cluster& cluster, std::uint32_t model) {
    std::uint32_t victim = cluster.executors();
    for (std::uint32_t e = 0; e < cluster.executors(); ++e) {
        if (!cluster.busy(e) || cluster.running(e).model != model) continue;
        if (victim == cluster.executors() ||
            gives_way_before(cluster.running(e), cluster.running(victim))) {
            victim = e;
        }
    }
    if (victim == cluster.executors()) return;
    const Batch& running = cluster.running(victim);
    const auto rows = static_cast<double>(feasible_with(cluster, running));
    if (rows < kPreemptFactor * static_cast<double>(running.requests.size())) return;
    for (const RequestId id : cluster.preempt(victim)) queues_[model].add(cluster, id);
    const std::size_t taken = feasible(cluster, model);
    if (taken > 0) cluster.dispatch(victim, model, queues_[model].take(cluster, 0, taken));
    serve(cluster);
}

}  // namespace

std::unique_ptr<Policy> make_shepherd() { return std::make_unique<Shepherd>(); }

}  // namespace infersched::simulation
