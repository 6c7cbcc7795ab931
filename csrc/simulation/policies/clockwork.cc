// Clockwork (Gujarati et al. 2020): predictable batches of fixed sizes, committed ahead of time.
//
// At every arrival and every end of a batch, the executor that is predicted to be free first takes
// work, as long as that is within the commitment horizon. A batch of a size has the first requests
// whose deadlines hold at that size; those before them could only have gone in a smaller batch and
// are dropped with it. A model offers the largest size it has requests for, and the model with the
// smallest (earliest deadline of the batch - estimate) is served. An estimate is the largest of the
// last ten measurements. Nothing is deferred.

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
    void executor_down(Cluster&, std::uint32_t executor) override { commitments_[executor] = {}; }
    void timer(Cluster& cluster) override { serve(cluster); }

  private:
    struct Choice {
        std::uint32_t model = 0;
        std::size_t size_index = 0;
        std::size_t from = 0;
        Nanos latest_start_ns = kNever;
    };

    void serve(Cluster& cluster);
    // Among those that are up and not in tried_.
    std::uint32_t first_free(const Cluster& cluster) const;
    // kNever: nothing can be served.
    Choice choose(Cluster& cluster, std::uint32_t executor, Nanos start);
    Choice largest(Cluster& cluster, std::uint32_t model, Nanos start);
    void commit(Cluster& cluster, std::uint32_t executor, const Choice& choice, Nanos start);

    Nanos ahead_ns_;
    std::vector<Waiting> queues_;
    std::vector<std::array<Estimate, kSizes.size()>> estimates_;
    std::vector<Commitment> commitments_;  // by executor
    std::vector<bool> tried_;              // executors without a request for what they hold
};

void Clockwork::begin(Cluster& cluster) {
    queues_.resize(cluster.models());
    estimates_.resize(cluster.models());
    commitments_.resize(cluster.executors());
    tried_.resize(cluster.executors());
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
    std::fill(tried_.begin(), tried_.end(), false);
    for (;;) {
        const std::uint32_t executor = first_free(cluster);
        if (executor == cluster.executors()) return;
        const Nanos start = std::max(commitments_[executor].ends_ns, cluster.now());
        if (start >= cluster.now() + ahead_ns_ && start > cluster.now()) return;
        const Choice choice = choose(cluster, executor, start);
        if (choice.latest_start_ns != kNever) {
            commit(cluster, executor, choice, start);
        } else if (cluster.hold_all()) {
            return;
        } else {
            tried_[executor] = true;
        }
    }
}

void Clockwork::commit(Cluster& cluster, std::uint32_t executor, const Choice& choice,
                       Nanos start) {
    Waiting& queue = queues_[choice.model];
    for (std::size_t i = 0; i < choice.from; ++i) queue.drop_front(cluster);
    Commitment& on = commitments_[executor];
    on.estimates_ns.push_back(estimates_[choice.model][choice.size_index].value());
    on.ends_ns = start + on.estimates_ns.back();
    const std::size_t rows = kSizes[choice.size_index];
    cluster.dispatch(executor, choice.model, queue.take(cluster, 0, rows));
}

std::uint32_t Clockwork::first_free(const Cluster& cluster) const {
    std::uint32_t first = cluster.executors();
    for (std::uint32_t e = 0; e < commitments_.size(); ++e) {
        if (tried_[e] || cluster.down(e)) continue;
        if (first == cluster.executors() || commitments_[e].ends_ns < commitments_[first].ends_ns) {
            first = e;
        }
    }
    return first;
}

Clockwork::Choice Clockwork::choose(Cluster& cluster, std::uint32_t executor, Nanos start) {
    Choice best;
    for (std::uint32_t m = 0; m < queues_.size(); ++m) {
        if (queues_[m].empty() || !cluster.holds(executor, m)) continue;
        const Choice choice = largest(cluster, m, start);
        if (choice.latest_start_ns < best.latest_start_ns) best = choice;
    }
    return best;
}

Clockwork::Choice Clockwork::largest(Cluster& cluster, std::uint32_t model, Nanos start) {
    Waiting& queue = queues_[model];
    const Nanos alone = estimates_[model][0].value();
    while (!queue.empty() && start + alone > queue.deadline(0)) queue.drop_front(cluster);
    Choice found;
    std::size_t from = 0;
    const std::size_t rows_max = cluster.latency(model).rows_max();
    for (std::size_t i = 0; i < kSizes.size() && kSizes[i] <= rows_max; ++i) {
        const Nanos estimate = estimates_[model][i].value();
        while (from < queue.size() && start + estimate > queue.deadline(from)) ++from;
        if (queue.size() - from < kSizes[i]) break;
        found = {model, i, from, queue.deadline(from) - estimate};
    }
    return found;
}

}  // namespace

std::unique_ptr<Policy> make_clockwork(Nanos ahead_ns) {
    return std::make_unique<Clockwork>(ahead_ns);
}

}  // namespace infersched::simulation
