// The window drop that Symphony and the just-enough policy share: which requests the next batch of
// a model takes, and which are given up for it.
#pragma once

#include <algorithm>
#include <cstddef>

#include "base/time.h"
#include "simulation/cluster.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

// The waiting requests are in two parts: `older` ones, without which the fresh ones could make a
// larger batch in time, and the fresh ones behind them.
struct Gathering {
    Waiting waiting;
    std::size_t older = 0;
    std::size_t rows = 0;        // of the batch, from the front; 0: nothing waits
    Nanos deadline_ns = kNever;  // the earliest in the batch

    void gather(Cluster& cluster, const Latency& latency, std::size_t target) {
        const Nanos now = cluster.now();
        while (older < waiting.size()) {
            const std::size_t fresh = std::min(waiting.size() - older, latency.rows_max());
            if (now + latency.at(fresh) <= waiting.deadline(older)) break;
            ++older;
        }
        const std::size_t fresh = waiting.size() - older;
        rows = std::max<std::size_t>(std::min(target, fresh), 1);
        while (older > 0 && now + latency.at(rows) > waiting.deadline(0)) {
            waiting.drop_front(cluster);
            --older;
        }
        rows = std::min(rows, waiting.size());
        deadline_ns = kNever;
        if (rows == 0) return;
        deadline_ns = waiting.deadline(0);
        const std::size_t limit = std::min(waiting.size(), latency.rows_max());
        while (rows < limit && now + latency.at(rows + 1) <= deadline_ns) ++rows;
    }

    std::vector<RequestId> take(Cluster& cluster) {
        std::vector<RequestId> taken = waiting.take(cluster, 0, rows);
        older -= std::min(older, rows);
        rows = 0;
        deadline_ns = kNever;
        return taken;
    }
};

}  // namespace infersched::simulation
