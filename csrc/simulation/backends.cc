#include "simulation/backends.h"

#include <algorithm>
#include <map>
#include <utility>

namespace infersched::simulation {

namespace {

// How long a backend takes to say that it runs nothing.
constexpr Nanos kRefusalNs = 50 * kMicrosecond;
// The part of an execution after which it runs out of memory.
constexpr Nanos kOutOfMemoryShare = 4;
constexpr std::uint32_t kNoStation = 0xffffffff;

}  // namespace

Backends::Backends(const Scenario& scenario, const EngineSettings& settings,
                   const std::vector<ModelSetup>& models, EventHeap& events)
    : scenario_(scenario),
      settings_(settings),
      events_(events),
      random_(scenario.seed ^ kNoiseStream),
      arenas_(settings, models),
      counts_(scenario.models.size()) {
    for (const ModelSetup& model : models) {
        for (const engine::Placement& p : model.placements) {
            backends_ = std::max<std::size_t>(backends_, p.backend + 1);
        }
    }
    troubles_.resize(backends_);
    station_of_.resize(models.size() * backends_, kNoStation);
    std::map<std::uint32_t, std::uint32_t> groups;
    for (std::size_t m = 0; m < models.size(); ++m) {
        for (const engine::Placement& p : models[m].placements) {
            const auto own = static_cast<std::uint32_t>(stations_.size());
            const bool alone = p.executor_group == engine::kOwnExecutors;
            const auto known = alone ? groups.end() : groups.find(p.executor_group);
            station_of_[m * backends_ + p.backend] = known == groups.end() ? own : known->second;
            if (known != groups.end()) continue;
            stations_.emplace_back();
            Station& station = stations_.back();
            station.servers = alone ? std::max(p.instances, 1u) : 1;
            for (std::uint32_t s = station.servers; s > 0; --s) station.idle.push_back(s - 1);
            if (!alone) groups.emplace(p.executor_group, own);
        }
    }
}

void Backends::send(const Batch& batch, Nanos now) {
    auto slot = static_cast<std::uint32_t>(sent_.size());
    if (free_.empty()) {
        sent_.emplace_back();
    } else {
        slot = free_.back();
        free_.pop_back();
    }
    Sent& sent = sent_[slot];
    sent.batch = batch;
    sent.order = ++order_;
    sent.station = station_of_[batch.model * backends_ + batch.backend];
    sent.where = Where::kOnTheWay;
    sent.refused = sent.out_of_memory = false;
    sent.held_ns = 0;
    ++out_;
    if (settings_.wire_ns > 0) {
        events_.push(now + settings_.wire_ns, EventKind::kBatchArrives, slot, sent.generation);
    } else {
        arrive(slot, now);
    }
}

void Backends::arrive(std::uint32_t slot, Nanos now) {
    Sent& sent = sent_[slot];
    if (troubles_[sent.batch.backend].refusing > 0) {
        sent.refused = true;
        sent.where = Where::kReplying;
        const Nanos back = now + kRefusalNs + settings_.wire_ns;
        events_.push(back, EventKind::kReply, slot, sent.generation);
        return;
    }
    Station& station = stations_[sent.station];
    if (!station.idle.empty()) {
        const std::uint32_t server = station.idle.back();
        station.idle.pop_back();
        start(slot, server, now);
    } else {
        sent.where = Where::kWaiting;
        station.waiting.push_back(slot);
    }
}

void Backends::start(std::uint32_t slot, std::uint32_t server, Nanos now) {
    Sent& sent = sent_[slot];
    sent.server = server;
    const Batch& batch = sent.batch;
    const Trouble& trouble = troubles_[batch.backend];
    double factor =
        slowdown(scenario_, batch.backend, now) * trouble.slow *
        (1 + settings_.drift_per_s * static_cast<double>(std::min(now, drift_until_)) / 1e9);
    if (batch.backend < settings_.speeds.size()) factor /= settings_.speeds[batch.backend];
    Nanos holds = execution_ns(scenario_, batch.model, batch.rows, random_, factor);
    sent.where = Where::kRunning;
    sent.out_of_memory =
        !arenas_.take(batch.model, batch.backend, server, {batch.rows, batch.row_bytes}, now);
    if (sent.out_of_memory) holds = std::max<Nanos>(holds / kOutOfMemoryShare, 1);
    sent.held_ns = std::max(trouble.hangs_until_ns - now, holds);
    events_.push(now + sent.held_ns, EventKind::kBatchEnd, slot, sent.generation);
    if (now < scenario_.warm_up_ns) return;
    ++counts_[batch.model].batches;
    counts_[batch.model].batched_rows += batch.rows;
}

void Backends::leave_station(const Sent& sent, Nanos now) {
    Station& station = stations_[sent.station];
    if (station.waiting.empty()) {
        station.idle.push_back(sent.server);
        return;
    }
    const std::uint32_t next = station.waiting.front();
    station.waiting.pop_front();
    start(next, sent.server, now);
}

bool Backends::handle(const Event& event, Nanos now, Reply* reply) {
    const std::uint32_t slot = event.index;
    if (sent_[slot].generation != event.generation) return false;
    if (event.kind == EventKind::kBatchArrives) {
        arrive(slot, now);
        return false;
    }
    if (event.kind == EventKind::kBatchEnd) {
        sent_[slot].where = Where::kReplying;
        leave_station(sent_[slot], now);
        if (settings_.wire_ns > 0) {
            const Nanos back = now + settings_.wire_ns;
            events_.push(back, EventKind::kReply, slot, event.generation);
            return false;
        }
    }
    finish(slot, reply);
    return true;
}

void Backends::finish(std::uint32_t slot, Reply* reply) {
    const Sent& sent = sent_[slot];
    const Trouble& trouble = troubles_[sent.batch.backend];
    *reply = Reply();
    reply->batch = sent.batch;
    reply->held_ns = sent.held_ns;
    if (sent.refused) {
        reply->failed = true;
        reply->failure = engine::FailureKind::kNothingRan;
        reply->code = StatusCode::kUnavailable;
    } else if (sent.out_of_memory) {
        reply->failed = true;
        reply->failure = engine::FailureKind::kOutOfMemory;
        reply->code = StatusCode::kInternal;
    } else if (trouble.failing > 0 && random_.unit() <= trouble.failing) {
        reply->failed = true;
        reply->failure = trouble.failure;
        reply->code = trouble.code;
    }
    release(slot);
}

void Backends::release(std::uint32_t slot) {
    ++sent_[slot].generation;
    sent_[slot].where = Where::kNowhere;
    free_.push_back(slot);
    --out_;
}

void Backends::abandon(engine::BatchHandle handle, std::uint32_t backend) {
    for (std::uint32_t slot = 0; slot < sent_.size(); ++slot) {
        const Sent& sent = sent_[slot];
        if (sent.where == Where::kNowhere || sent.batch.handle != handle) continue;
        if (sent.batch.backend != backend) continue;
        if (sent.where == Where::kWaiting) {
            std::deque<std::uint32_t>& waiting = stations_[sent.station].waiting;
            waiting.erase(std::find(waiting.begin(), waiting.end(), slot));
        }
        if (sent.where == Where::kWaiting || sent.where == Where::kOnTheWay) release(slot);
        return;
    }
}

std::vector<engine::BatchHandle> Backends::lose(std::uint32_t backend, Nanos now) {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> lost;
    for (std::uint32_t slot = 0; slot < sent_.size(); ++slot) {
        const Sent& sent = sent_[slot];
        if (sent.where != Where::kNowhere && sent.batch.backend == backend) {
            lost.emplace_back(sent.order, slot);
        }
    }
    std::sort(lost.begin(), lost.end());
    std::vector<engine::BatchHandle> handles;
    // First what waits, or it would start in the place of what runs.
    for (const auto& [order, slot] : lost) {
        handles.push_back(sent_[slot].batch.handle);
        if (sent_[slot].where != Where::kWaiting) continue;
        std::deque<std::uint32_t>& waiting = stations_[sent_[slot].station].waiting;
        waiting.erase(std::find(waiting.begin(), waiting.end(), slot));
    }
    for (const auto& [order, slot] : lost) {
        if (sent_[slot].where == Where::kRunning) leave_station(sent_[slot], now);
        release(slot);
    }
    arenas_.forget(backend, now);
    return handles;
}

template <class Change>
void Backends::each(std::uint32_t backend, Change change) {
    for (std::size_t b = 0; b < troubles_.size(); ++b) {
        if (backend == engine::kNoBackend || backend == b) change(troubles_[b]);
    }
}

void Backends::begin(const Fault& fault) {
    each(fault.backend, [&](Trouble& trouble) {
        if (fault.kind == FaultKind::kSlow) trouble.slow *= fault.factor;
        if (fault.kind == FaultKind::kHang) {
            trouble.hangs_until_ns = std::max(trouble.hangs_until_ns, fault.until_ns);
        }
        if (fault.kind == FaultKind::kRefusing) ++trouble.refusing;
        if (fault.kind != FaultKind::kFailing) return;
        trouble.failing = fault.factor;
        trouble.failure = fault.failure;
        trouble.code = fault.code;
    });
}

void Backends::end(const Fault& fault) {
    each(fault.backend, [&](Trouble& trouble) {
        if (fault.kind == FaultKind::kSlow) trouble.slow /= fault.factor;
        if (fault.kind == FaultKind::kRefusing) --trouble.refusing;
        if (fault.kind == FaultKind::kFailing) trouble.failing = 0;
    });
}

}  // namespace infersched::simulation
