// Clockwork (Gujarati et al. 2020): predictable batches of fixed sizes, committed ahead of time.
//
// An executor takes new work while what it has ends within the commitment horizon. Each time the
// batch with the smallest (earliest deadline - estimate) among those that end in time is committed:
// for one model that is the largest such batch. Nothing is deferred; a request that could not
// finish even alone is dropped.

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>

#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

constexpr std::array<std::size_t, 5> kSizes = {1, 2, 4, 8, 16};
constexpr std::size_t kMeasurements = 10;

// The largest of the last measurements of one batch size.
struct Estimate {
    std::array<Nanos, kMeasurements> last{};
    std::size_t count = 0;

    void add(Nanos value) { last[count++ % kMeasurements] = value; }
    Nanos value() const {
        return *std::max_element(last.begin(), last.begin() + std::min(count, kMeasurements));
    }
};

// What an executor has been given and not finished.
struct Commitment {
    std::deque<Nanos> estimates_ns;
    Nanos ends_ns = 0;  // as predicted
};

class Clockwork : public Policy {
  public:
    explicit Clockwork(Nanos ahead_ns) : ahead_ns_(ahead_ns) {}

    void begin(Cluster& cluster) override;
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) override;
    void timer(Cluster& cluster) override { serve(cluster); }

  private:
    struct Choice {
        std::uint32_t model = 0;
        std::size_t size_index = 0;
        Nanos latest_start_ns = kNever;
    };

    void serve(Cluster& cluster);
    std::uint32_t first_free() const;
    Choice choose(Cluster& cluster, Nanos start);

    Nanos ahead_ns_;
    std::vector<Waiting> queues_;
    std::vector<std::array<Estimate, kSizes.size()>> estimates_;
    std::vector<Commitment> commitments_;  // by executor
};

void Clockwork::begin(Cluster& cluster) {
    queues_.resize(cluster.models());
    estimates_.resize(cluster.models());
    commitments_.resize(cluster.executors());
    for (std::uint32_t m = 0; m < cluster.models(); ++m) {
        for (std::size_t i = 0; i < kSizes.size(); ++i) {
            estimates_[m][i].add(cluster.latency(m).at(kSizes[i]));
        }
    }
}

void Clockwork::arrived(Cluster& cluster, RequestId id) {
    queues_[cluster.request(id).model].add(cluster, id);
    serve(cluster);
}

void Clockwork::batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) {
    const auto size = std::find(kSizes.begin(), kSizes.end(), batch.requests.size());
    const auto index = static_cast<std::size_t>(size - kSizes.begin());
    estimates_[batch.model][index].add(batch.ends_ns - batch.started_ns);
    Commitment& on = commitments_[executor];
    on.estimates_ns.pop_front();
    on.ends_ns = std::accumulate(on.estimates_ns.begin(), on.estimates_ns.end(), cluster.now());
    serve(cluster);
}

void Clockwork::serve(Cluster& cluster) {
    for (;;) {
        const std::uint32_t executor = first_free();
        Commitment& on = commitments_[executor];
        const Nanos start = std::max(on.ends_ns, cluster.now());
        if (start > cluster.now() + ahead_ns_) {
            cluster.wake_at(start - ahead_ns_);
            return;
        }
        const Choice choice = choose(cluster, start);
        if (choice.latest_start_ns == kNever) {
            cluster.wake_at(kNever);
            return;
        }
        const std::size_t rows = kSizes[choice.size_index];
        on.estimates_ns.push_back(estimates_[choice.model][choice.size_index].value());
        on.ends_ns = start + on.estimates_ns.back();
        cluster.dispatch(executor, choice.model, queues_[choice.model].take(cluster, 0, rows));
    }
}

std::uint32_t Clockwork::first_free() const {
    std::uint32_t first = 0;
    for (std::uint32_t e = 1; e < commitments_.size(); ++e) {
        if (commitments_[e].ends_ns < commitments_[first].ends_ns) first = e;
    }
    return first;
}

Clockwork::Choice Clockwork::choose(Cluster& cluster, Nanos start) {
    Choice best;
    for (std::uint32_t m = 0; m < queues_.size(); ++m) {
        Waiting& queue = queues_[m];
        const Nanos alone = estimates_[m][0].value();
        while (!queue.empty() && start + alone > queue.deadline(0)) queue.drop_front(cluster);
        for (std::size_t i = kSizes.size(); i-- > 0;) {
            if (queue.size() < kSizes[i]) continue;
            const Nanos latest = queue.deadline(0) - estimates_[m][i].value();
            if (latest < start) continue;
            if (latest < best.latest_start_ns) best = {m, i, latest};
            break;
        }
    }
    return best;
}

}  // namespace

std::unique_ptr<Policy> make_clockwork(Nanos ahead_ns) {
    return std::make_unique<Clockwork>(ahead_ns);
}

}  // namespace infersched::simulation
