// Shepherd's Flex (Zhang et al. 2023): the largest batch first, and a running batch gives way to
// one that is larger by a constant factor.
//
// The largest batch of a model that is in time for its earliest member leaves out the requests with
// the earliest deadlines; they wait on and are dropped when they could not finish even alone.
// Models with equally large batches are served in their order. All models are of one group.

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

  private:
    struct Candidate {
        std::uint32_t model = 0;
        std::size_t from = 0;
        std::size_t rows = 0;
    };

    Candidate largest(Cluster& cluster, std::uint32_t model);
    void dispatch(Cluster& cluster, std::uint32_t executor, const Candidate& batch);
    void serve(Cluster& cluster);
    // The smaller one; of equal ones that with less work to lose.
    static bool gives_way_before(const Batch& a, const Batch& b);
    void preempt_for(Cluster& cluster, std::uint32_t model);

    std::vector<Waiting> queues_;
};

void Shepherd::arrived(Cluster& cluster, RequestId id) {
    const std::uint32_t model = cluster.request(id).model;
    queues_[model].add(cluster, id);
    if (cluster.idle_count() > 0) {
        serve(cluster);
    } else {
        preempt_for(cluster, model);
    }
}

Shepherd::Candidate Shepherd::largest(Cluster& cluster, std::uint32_t model) {
    Waiting& queue = queues_[model];
    const Latency& latency = cluster.latency(model);
    const Nanos now = cluster.now();
    while (!queue.empty() && now + latency.at(1) > queue.deadline(0)) queue.drop_front(cluster);
    Candidate best;
    best.model = model;
    for (std::size_t from = 0; from + best.rows < queue.size(); ++from) {
        const std::size_t rows =
            std::min(latency.rows_within(queue.deadline(from) - now), queue.size() - from);
        if (rows <= best.rows) continue;
        best.from = from;
        best.rows = rows;
    }
    return best;
}

void Shepherd::dispatch(Cluster& cluster, std::uint32_t executor, const Candidate& batch) {
    cluster.dispatch(executor, batch.model,
                     queues_[batch.model].take(cluster, batch.from, batch.rows));
}

void Shepherd::serve(Cluster& cluster) {
    while (cluster.idle_count() > 0) {
        Candidate best;
        for (std::uint32_t m = 0; m < queues_.size(); ++m) {
            const Candidate candidate = largest(cluster, m);
            if (candidate.rows > best.rows) best = candidate;
        }
        if (best.rows == 0) return;
        dispatch(cluster, cluster.first_idle(), best);
    }
}

bool Shepherd::gives_way_before(const Batch& a, const Batch& b) {
    if (a.requests.size() != b.requests.size()) return a.requests.size() < b.requests.size();
    return a.started_ns > b.started_ns;
}

void Shepherd::preempt_for(Cluster& cluster, std::uint32_t model) {
    const Candidate candidate = largest(cluster, model);
    std::uint32_t victim = 0;
    for (std::uint32_t e = 1; e < cluster.executors(); ++e) {
        if (gives_way_before(cluster.running(e), cluster.running(victim))) victim = e;
    }
    const auto running = static_cast<double>(cluster.running(victim).requests.size());
    if (static_cast<double>(candidate.rows) < kPreemptFactor * running) return;
    for (const RequestId id : cluster.preempt(victim)) {
        queues_[cluster.request(id).model].add(cluster, id);
    }
    // The stopped requests may join.
    const Candidate batch = largest(cluster, model);
    if (batch.rows > 0) dispatch(cluster, victim, batch);
}

}  // namespace

std::unique_ptr<Policy> make_shepherd() { return std::make_unique<Shepherd>(); }

}  // namespace infersched::simulation
