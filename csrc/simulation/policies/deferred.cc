#include "simulation/policies/deferred.h"

#include <algorithm>

namespace infersched::simulation {

void Deferred::begin(Cluster& cluster) {
    models_.resize(cluster.models());
    retarget(cluster);
    next_tick_ns_ = RateMeter::kTickNs;
}

void Deferred::arrived(Cluster& cluster, RequestId id) {
    tick(cluster);
    const std::uint32_t model = cluster.request(id).model;
    models_[model].rate.count();
    models_[model].next.waiting.add(cluster, id);
    gather(cluster, model);
    if (cluster.idle_count() > 0) serve(cluster);
}

void Deferred::batch_ended(Cluster& cluster, std::uint32_t, const Batch&) {
    for (std::uint32_t model = 0; model < models_.size(); ++model) gather(cluster, model);
    serve(cluster);
}

void Deferred::timer(Cluster& cluster) {
    for (std::uint32_t model = 0; model < models_.size(); ++model) gather(cluster, model);
    serve(cluster);
}

void Deferred::tick(Cluster& cluster) {
    if (cluster.now() < next_tick_ns_) return;
    while (cluster.now() >= next_tick_ns_) {
        for (ModelState& model : models_) model.rate.tick();
        next_tick_ns_ += RateMeter::kTickNs;
    }
    retarget(cluster);
}

void Deferred::gather(Cluster& cluster, std::uint32_t model) {
    ModelState& state = models_[model];
    state.next.gather(cluster, cluster.latency(model), state.target);
}

void Deferred::serve(Cluster& cluster) {
    while (cluster.idle_count() > 0) {
        std::uint32_t chosen = cluster.executors() + static_cast<std::uint32_t>(models_.size());
        const std::uint32_t none = chosen;
        Nanos chosen_start = kNever;
        Nanos wake = kNever;
        for (std::uint32_t model = 0; model < models_.size(); ++model) {
            const Gathering& next = models_[model].next;
            if (next.rows == 0 || !cluster.can_start(model)) continue;
            const Nanos ready = ready_ns(cluster, model);
            if (ready > cluster.now()) {
                wake = std::min(wake, ready);
                continue;
            }
            const Nanos latest_start = next.deadline_ns - cluster.latency(model).at(next.rows);
            if (chosen != none && latest_start >= chosen_start) continue;
            chosen = model;
            chosen_start = latest_start;
        }
        cluster.wake_at(wake);
        if (chosen == none) return;
        cluster.dispatch(cluster.first_idle(chosen), chosen, models_[chosen].next.take(cluster));
        gather(cluster, chosen);
    }
    cluster.wake_at(kNever);
}

std::size_t Deferred::staggered_rows(const Latency& latency, Nanos objective_ns, double per_s,
                                     bool waits_for_rows) {
    const auto in_time = [&](std::size_t rows) {
        const double holds = static_cast<double>(latency.at(rows));
        const double n = per_s * holds / 1e9 / static_cast<double>(rows);
        const double wait = waits_for_rows && n <= 1
                                ? static_cast<double>(rows) * 1e9 / std::max(per_s, 1e-9)
                                : holds / std::max(n, 1.0);
        return holds + wait <= static_cast<double>(objective_ns);
    };
    std::size_t rows = latency.rows_within(objective_ns);
    while (rows > 1 && !in_time(rows)) --rows;
    return std::max<std::size_t>(rows, 1);
}

}  // namespace infersched::simulation
