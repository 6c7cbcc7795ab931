// Ray Serve's batching with its usual settings: at most 10 requests, at most 10 ms, no deadlines.
//
// Every executor is a replica of each model that it holds. An arrival goes to the shorter of two
// replicas chosen at random, by the requests that wait and run there, and stays. A replica's batch
// may go when it has 10 requests, or 10 ms after the arrival of its first one; one batch at a time
// runs on an executor, the one first whose oldest request came first.

#include <algorithm>
#include <utility>

#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

constexpr std::size_t kRowsMax = 10;
constexpr Nanos kWaitNs = 10 * kMillisecond;
constexpr std::uint64_t kRouteStream = 0x726f757465000000u;

class RayServe : public Policy {
  public:
    void begin(Cluster& cluster) override;
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) override;
    void executor_down(Cluster& cluster, std::uint32_t executor) override;
    void timer(Cluster& cluster) override;

  private:
    struct Replica {
        std::uint32_t executor = 0;
        Waiting queue;
        std::size_t running = 0;
        std::size_t load() const { return queue.size() + running; }
    };

    Replica& route(std::uint32_t model);
    static Nanos oldest_ns(const Cluster& cluster, const Replica& replica) {
        return cluster.request(replica.queue.front()).arrived_ns;
    }
    static std::size_t rows_max(const Cluster& cluster, const Replica& replica) {
        const std::uint32_t model = cluster.request(replica.queue.front()).model;
        return std::min(kRowsMax, cluster.latency(model).rows_max());
    }
    // When the batch of a replica, not empty, may go.
    static Nanos ready_ns(const Cluster& cluster, const Replica& replica) {
        const bool full = replica.queue.size() >= rows_max(cluster, replica);
        return oldest_ns(cluster, replica) + (full ? 0 : kWaitNs);
    }
    void serve(Cluster& cluster, std::uint32_t executor);
    void set_timer(Cluster& cluster);

    std::vector<std::vector<Replica>> replicas_;                          // by model
    std::vector<std::vector<std::pair<std::uint32_t, std::size_t>>> on_;  // by executor
    Random random_{0};
};

void RayServe::begin(Cluster& cluster) {
    random_ = Random(cluster.scenario().seed ^ kRouteStream);
    replicas_.resize(cluster.models());
    on_.resize(cluster.executors());
    for (std::uint32_t e = 0; e < cluster.executors(); ++e) {
        for (std::uint32_t m = 0; m < cluster.models(); ++m) {
            if (!cluster.holds(e, m)) continue;
            on_[e].emplace_back(m, replicas_[m].size());
            replicas_[m].emplace_back();
            replicas_[m].back().executor = e;
        }
    }
}

RayServe::Replica& RayServe::route(std::uint32_t model) {
    std::vector<Replica>& replicas = replicas_[model];
    if (replicas.size() == 1) return replicas.front();
    const std::size_t first = random_.next() % replicas.size();
    const std::size_t second =
        (first + 1 + random_.next() % (replicas.size() - 1)) % replicas.size();
    return replicas[second].load() < replicas[first].load() ? replicas[second] : replicas[first];
}

void RayServe::arrived(Cluster& cluster, RequestId id) {
    const std::uint32_t model = cluster.request(id).model;
    if (replicas_[model].empty()) {
        cluster.drop(id);
        return;
    }
    Replica& replica = route(model);
    replica.queue.add(cluster, id);
    serve(cluster, replica.executor);
    set_timer(cluster);
}

void RayServe::batch_ended(Cluster& cluster, std::uint32_t executor, const Batch&) {
    executor_down(cluster, executor);
    serve(cluster, executor);
    set_timer(cluster);
}

void RayServe::executor_down(Cluster&, std::uint32_t executor) {
    for (const auto& [model, at] : on_[executor]) replicas_[model][at].running = 0;
}

void RayServe::timer(Cluster& cluster) {
    for (std::uint32_t e = 0; e < on_.size(); ++e) serve(cluster, e);
    set_timer(cluster);
}

void RayServe::serve(Cluster& cluster, std::uint32_t executor) {
    if (!cluster.idle(executor)) return;
    Replica* chosen = nullptr;
    std::uint32_t chosen_model = 0;
    for (const auto& [model, at] : on_[executor]) {
        Replica& replica = replicas_[model][at];
        if (replica.queue.empty() || ready_ns(cluster, replica) > cluster.now()) continue;
        if (chosen != nullptr && oldest_ns(cluster, replica) >= oldest_ns(cluster, *chosen))
            continue;
        chosen = &replica;
        chosen_model = model;
    }
    if (chosen == nullptr) return;
    chosen->running = std::min(chosen->queue.size(), rows_max(cluster, *chosen));
    cluster.dispatch(executor, chosen_model, chosen->queue.take(cluster, 0, chosen->running));
}

void RayServe::set_timer(Cluster& cluster) {
    Nanos next = kNever;
    for (std::uint32_t e = 0; e < on_.size(); ++e) {
        if (!cluster.idle(e)) continue;
        for (const auto& [model, at] : on_[e]) {
            const Replica& replica = replicas_[model][at];
            if (!replica.queue.empty()) next = std::min(next, ready_ns(cluster, replica));
        }
    }
    cluster.wake_at(next);
}

}  // namespace

std::unique_ptr<Policy> make_ray_serve() { return std::make_unique<RayServe>(); }

}  // namespace infersched::simulation
