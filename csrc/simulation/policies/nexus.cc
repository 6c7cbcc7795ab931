// Nexus (Shen et al. 2019): a plan for the mean rates says which executor serves which models with
// which batch; executors cycle through theirs.
//
// The plan is squishy bin packing: each model gets as many whole executors as it saturates with the
// largest b with 2 * l(b) <= objective; what is left of its rate is packed with that of others into
// cycles short enough for all of them, best fit, the fullest first. It is made for as much more
// than the mean rates as the executors have room for; one that the plan has no need of stays idle.
// Arrivals are dealt to the executors that serve their model in proportion to what each can serve,
// and wait there. An executor takes its models in turn: of each up to the planned batch, scanning
// from the oldest request and dropping what would not survive a batch of the expected size.

#include <algorithm>

#include "simulation/policies/nexus_plan.h"
#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

class Nexus : public Policy {
  public:
    void begin(Cluster& cluster) override;
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch&) override {
        serve(cluster, executor);
    }
    void executor_up(Cluster& cluster, std::uint32_t executor) override {
        serve(cluster, executor);
    }

  private:
    struct Route {
        std::uint32_t executor = 0;
        std::size_t share = 0;
        double throughput = 0;
        double credit = 0;  // smooth weighted round robin: the largest is next
    };
    struct Station {
        NexusPlan plan;
        std::vector<Waiting> queues;  // by share
        std::size_t turn = 0;
    };

    // The next share in turn with a request that survives.
    void serve(Cluster& cluster, std::uint32_t executor);

    std::vector<Station> stations_;           // by executor
    std::vector<std::vector<Route>> routes_;  // by model
};

void Nexus::begin(Cluster& cluster) {
    routes_.resize(cluster.models());
    for (NexusPlan& plan : nexus_plan(cluster)) {
        const auto executor = static_cast<std::uint32_t>(stations_.size());
        for (std::size_t s = 0; s < plan.shares.size(); ++s) {
            const NexusShare& share = plan.shares[s];
            routes_[share.model].push_back({executor, s, plan.throughput(share), 0});
        }
        Station station;
        station.queues.resize(plan.shares.size());
        station.plan = std::move(plan);
        stations_.push_back(std::move(station));
    }
}

void Nexus::arrived(Cluster& cluster, RequestId id) {
    std::vector<Route>& routes = routes_[cluster.request(id).model];
    if (routes.empty()) {
        cluster.drop(id);
        return;
    }
    double all = 0;
    for (Route& route : routes) {
        route.credit += route.throughput;
        all += route.throughput;
    }
    Route& next =
        *std::max_element(routes.begin(), routes.end(),
                          [](const Route& a, const Route& b) { return a.credit < b.credit; });
    next.credit -= all;
    stations_[next.executor].queues[next.share].add(cluster, id);
    if (cluster.idle(next.executor)) serve(cluster, next.executor);
}

void Nexus::serve(Cluster& cluster, std::uint32_t executor) {
    Station& station = stations_[executor];
    const std::vector<NexusShare>& shares = station.plan.shares;
    for (std::size_t tried = 0; tried < shares.size(); ++tried) {
        const NexusShare& share = shares[station.turn];
        Waiting& queue = station.queues[station.turn];
        station.turn = (station.turn + 1) % shares.size();
        while (!queue.empty()) {
            const std::size_t rows = std::min(share.rows, queue.size());
            const Nanos ends = cluster.now() + cluster.latency(share.model).at(rows);
            if (ends <= queue.deadline(0)) {
                cluster.dispatch(executor, share.model, queue.take(cluster, 0, rows));
                return;
            }
            queue.drop_front(cluster);
        }
    }
}

}  // namespace

std::unique_ptr<Policy> make_nexus() { return std::make_unique<Nexus>(); }

}  // namespace infersched::simulation
