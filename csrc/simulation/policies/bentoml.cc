// BentoML's adaptive batching: a dispatcher for each model that learns how long batches take and
// looks at its queue every millisecond, as its published code does.
//
// Duration = a * n + b, least squares over the last 50 batches (the mean, no margin), and the
// average wait of their oldest requests, both brought up to date every 5 s. With n requests
// waiting: when the oldest could not be in time in a batch of all, it is cancelled; when waiting
// another tick for the newest to be joined costs less than the average wait, n * (wait of the
// newest + tick + a) <= 0.95 * average, it waits; else it sends, the newest first. A dispatcher
// that found no idle executor looks again at its next tick.

#include <algorithm>
#include <array>
#include <cmath>

#include "simulation/policies/policies.h"
#include "simulation/policies/waiting.h"

namespace infersched::simulation {

namespace {

constexpr Nanos kTickNs = kMillisecond;
constexpr Nanos kRefreshNs = 5 * kSecond;
constexpr std::size_t kKept = 50;
constexpr std::size_t kTraining = 6;  // first batches, after each of which it refreshes
constexpr std::size_t kRowsMax = 100;
constexpr double kDecay = 0.95;
// Before the first batches, as parts of the objective.
constexpr double kFirstSlope = 2.0 / 30;
constexpr double kFirstIntercept = 1.0 / 30;

struct Sample {
    double rows = 0;
    double held_ns = 0;
    double waited_ns = 0;  // the oldest
};

class Learned {
  public:
    void begin(Nanos objective_ns) {
        slope_ns_ = kFirstSlope * static_cast<double>(objective_ns);
        intercept_ns_ = kFirstIntercept * static_cast<double>(objective_ns);
    }
    void add(const Sample& sample, Nanos now) {
        samples_[count_++ % kKept] = sample;
        if (count_ > kTraining && now < refresh_ns_) return;
        refresh();
        refresh_ns_ = now + kRefreshNs;
    }
    double slope_ns() const { return slope_ns_; }
    double batch_ns(std::size_t rows) const {
        return slope_ns_ * static_cast<double>(rows) + intercept_ns_;
    }
    double wait_ns() const { return wait_ns_; }

  private:
    void refresh();

    std::array<Sample, kKept> samples_;
    std::size_t count_ = 0;
    Nanos refresh_ns_ = 0;
    double slope_ns_ = 0;
    double intercept_ns_ = 0;
    double wait_ns_ = 0;
};

void Learned::refresh() {
    const auto kept = static_cast<double>(std::min(count_, kKept));
    double n = 0;
    double nn = 0;
    double t = 0;
    double nt = 0;
    double waited = 0;
    for (std::size_t i = 0; i < std::min(count_, kKept); ++i) {
        const Sample& sample = samples_[i];
        n += sample.rows;
        nn += sample.rows * sample.rows;
        t += sample.held_ns;
        nt += sample.rows * sample.held_ns;
        waited += sample.waited_ns;
    }
    const double spread = kept * nn - n * n;
    double slope = 0;
    double intercept = 0;
    if (spread > 0.5) {  // of whole numbers
        slope = (kept * nt - n * t) / spread;
        intercept = (t - slope * n) / kept;
    } else {  // all alike: of the lines through their mean, the one of the least norm
        const double rows = n / kept;
        intercept = t / kept / (rows * rows + 1);
        slope = intercept * rows;
    }
    slope_ns_ = std::max(slope, 1000.0);
    intercept_ns_ = std::max(intercept, 0.0);
    wait_ns_ = std::max(waited / kept, 0.0);
}

class Bentoml : public Policy {
  public:
    void begin(Cluster& cluster) override;
    void arrived(Cluster& cluster, RequestId id) override;
    void batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) override;
    void timer(Cluster& cluster) override;

  private:
    struct Dispatcher {
        Waiting queue;
        Learned learned;
        Nanos looks_at_ns = kNever;  // kNever: nothing waits
    };

    // Sends and cancels what it will, until it has to wait.
    void look(Cluster& cluster, std::uint32_t model);
    bool cancels_head(const Cluster& cluster, std::uint32_t model) const;
    bool waits(const Cluster& cluster, std::uint32_t model) const;
    void send(Cluster& cluster, std::uint32_t model);
    void set_timer(Cluster& cluster);

    std::vector<Dispatcher> dispatchers_;   // by model
    std::vector<Nanos> oldest_arrived_ns_;  // of what runs, by executor
};

void Bentoml::begin(Cluster& cluster) {
    dispatchers_.resize(cluster.models());
    oldest_arrived_ns_.resize(cluster.executors());
    for (std::uint32_t m = 0; m < cluster.models(); ++m) {
        dispatchers_[m].learned.begin(cluster.objective_ns(m));
    }
}

void Bentoml::arrived(Cluster& cluster, RequestId id) {
    const std::uint32_t model = cluster.request(id).model;
    Dispatcher& dispatcher = dispatchers_[model];
    dispatcher.queue.add(cluster, id);
    if (dispatcher.looks_at_ns != kNever) return;
    look(cluster, model);
    set_timer(cluster);
}

void Bentoml::batch_ended(Cluster& cluster, std::uint32_t executor, const Batch& batch) {
    Sample sample;
    sample.rows = static_cast<double>(batch.requests.size());
    sample.held_ns = static_cast<double>(batch.ends_ns - batch.started_ns);
    sample.waited_ns = static_cast<double>(batch.started_ns - oldest_arrived_ns_[executor]);
    dispatchers_[batch.model].learned.add(sample, cluster.now());
}

void Bentoml::timer(Cluster& cluster) {
    for (std::uint32_t m = 0; m < dispatchers_.size(); ++m) {
        if (dispatchers_[m].looks_at_ns <= cluster.now()) look(cluster, m);
    }
    set_timer(cluster);
}

void Bentoml::set_timer(Cluster& cluster) {
    Nanos next = kNever;
    for (const Dispatcher& dispatcher : dispatchers_) {
        next = std::min(next, dispatcher.looks_at_ns);
    }
    cluster.wake_at(next);
}

void Bentoml::look(Cluster& cluster, std::uint32_t model) {
    Dispatcher& dispatcher = dispatchers_[model];
    while (!dispatcher.queue.empty()) {
        if (cancels_head(cluster, model)) {
            dispatcher.queue.drop_front(cluster);
            continue;
        }
        if (!cluster.can_start(model) || waits(cluster, model)) {
            dispatcher.looks_at_ns = cluster.now() + kTickNs;
            return;
        }
        send(cluster, model);
    }
    dispatcher.looks_at_ns = kNever;
}

bool Bentoml::cancels_head(const Cluster& cluster, std::uint32_t model) const {
    const Dispatcher& dispatcher = dispatchers_[model];
    const std::size_t n = dispatcher.queue.size();
    if (n == 1) return !cluster.can_start(model) && cluster.now() >= dispatcher.queue.deadline(0);
    const double left = static_cast<double>(dispatcher.queue.deadline(0) - cluster.now());
    return dispatcher.learned.batch_ns(n) >= left;
}

bool Bentoml::waits(const Cluster& cluster, std::uint32_t model) const {
    const Dispatcher& dispatcher = dispatchers_[model];
    const std::size_t n = dispatcher.queue.size();
    if (n >= std::min(kRowsMax, cluster.latency(model).rows_max())) return false;
    const Nanos newest = dispatcher.queue.deadline(n - 1) - cluster.objective_ns(model);
    const double waited = static_cast<double>(cluster.now() - newest + kTickNs);
    const double cost = static_cast<double>(n) * (waited + dispatcher.learned.slope_ns());
    return cost <= kDecay * dispatcher.learned.wait_ns();
}

void Bentoml::send(Cluster& cluster, std::uint32_t model) {
    Waiting& queue = dispatchers_[model].queue;
    const std::size_t rows = std::min({queue.size(), kRowsMax, cluster.latency(model).rows_max()});
    const std::size_t from = queue.size() - rows;
    const std::uint32_t executor = cluster.first_idle(model);
    oldest_arrived_ns_[executor] = queue.deadline(from) - cluster.objective_ns(model);
    cluster.dispatch(executor, model, queue.take(cluster, from, rows));
}

}  // namespace

std::unique_ptr<Policy> make_bentoml() { return std::make_unique<Bentoml>(); }

}  // namespace infersched::simulation
