// A static batcher as Triton's dynamic batcher is one: FIFO, never looks at a deadline.
//
// A model's pending batch may go when it has the preferred size, when its oldest request has waited
// for the delay, or, without a delay, as soon as an executor is idle. Among several such models the
// one whose oldest request came first is served.

#include <algorithm>
#include <utility>

#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

class Static : public Policy {
  public:
    explicit Static(std::vector<StaticSettings> settings) : settings_(std::move(settings)) {}

    void begin(Cluster& cluster) override {
        settings_.resize(cluster.models(), settings_.front());
        queues_.resize(cluster.models());
        for (std::uint32_t m = 0; m < cluster.models(); ++m) {
            StaticSettings& model = settings_[m];
            const auto limit = static_cast<std::uint32_t>(cluster.latency(m).rows_max());
            model.rows_max = std::clamp(model.rows_max, 1u, limit);
            if (model.rows_preferred == 0) model.rows_preferred = model.rows_max;
            model.rows_preferred = std::min(model.rows_preferred, model.rows_max);
        }
    }

    void arrived(Cluster& cluster, RequestId id) override {
        queues_[cluster.request(id).model].add(cluster, id);
        serve(cluster);
    }
    void batch_ended(Cluster& cluster, std::uint32_t, const Batch&) override { serve(cluster); }
    void timer(Cluster& cluster) override { serve(cluster); }

  private:
    Nanos oldest_ns(const Cluster& cluster, std::size_t model) const {
        return cluster.request(queues_[model].front()).arrived_ns;
    }

    void expire(Cluster& cluster, std::size_t model) {
        const Nanos timeout = settings_[model].queue_timeout_ns;
        while (!queues_[model].empty() &&
               add_saturating(oldest_ns(cluster, model), timeout) < cluster.now()) {
            queues_[model].drop_front(cluster);
        }
    }

    // When the pending batch of a model that has one may go.
    Nanos ready_ns(const Cluster& cluster, std::size_t model) const {
        const StaticSettings& settings = settings_[model];
        const bool full = queues_[model].size() >= settings.rows_preferred;
        return oldest_ns(cluster, model) + (full ? 0 : settings.delay_ns);
    }

    void serve(Cluster& cluster) {
        while (cluster.idle_count() > 0) {
            std::size_t chosen = queues_.size();
            Nanos wake = kNever;
            for (std::size_t model = 0; model < queues_.size(); ++model) {
                expire(cluster, model);
                if (queues_[model].empty()) continue;
                if (!cluster.can_start(static_cast<std::uint32_t>(model))) continue;
                const Nanos ready = ready_ns(cluster, model);
                if (ready > cluster.now()) {
                    wake = std::min(wake, ready);
                } else if (chosen == queues_.size() ||
                           oldest_ns(cluster, model) < oldest_ns(cluster, chosen)) {
                    chosen = model;
                }
            }
            cluster.wake_at(wake);
            if (chosen == queues_.size()) return;
            const std::size_t rows =
                std::min<std::size_t>(queues_[chosen].size(), settings_[chosen].rows_max);
            const auto served = static_cast<std::uint32_t>(chosen);
            cluster.dispatch(cluster.first_idle(served), served,
                             queues_[chosen].take(cluster, 0, rows));
        }
        cluster.wake_at(kNever);
    }

    std::vector<StaticSettings> settings_;
    std::vector<Waiting> queues_;
};

}  // namespace

std::unique_ptr<Policy> make_static(std::vector<StaticSettings> settings) {
    if (settings.empty()) settings.emplace_back();
    return std::make_unique<Static>(std::move(settings));
}

}  // namespace infersched::simulation
