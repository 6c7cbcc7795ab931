// How early a batch may leave for an instance that is still busy: on its way while the one before
// it ends, it costs the instance no time.
//
// The time of a batch is learned from dispatch to reply, with the way there and back. What of it an
// instance is not busy with is seen where a batch was sent so early that it waited for its
// instance: from the reply before it to its own takes so much less. Sent later than that, what it
// took less is how early it was. So now and then one is sent earlier than is known to be of use, to
// find out, and one when an instance is free, as what is compared with.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace infersched::engine {

// Mean and deviation of the last `memory` values, about.
class RecentMean {
  public:
    explicit RecentMean(std::uint32_t memory) : memory_(memory) {}

    void add(double value);
    std::uint32_t count() const { return count_; }
    double mean() const { return mean_; }
    // The variance of the mean.
    double error_squared() const;

    template <class Archive>
    void archive(Archive& archive) {
        archive(mean_);
        archive(variance_);
        archive(count_);
    }

  private:
    double mean_ = 0;
    double variance_ = 0;
    std::uint32_t count_ = 0;  // at most memory_
    std::uint32_t memory_;
};

class HeadStart {
  public:
    // A batch was sent to a free instance.
    void sent();
    // One was sent so long before an instance is expected to be free.
    void sent_early(Nanos early_ns);
    // How early is known to be of use, where batches take `batch_ns`; 0: not before an instance is
    // free. Of what a batch that was sent early took, so much was before its instance was free.
    Nanos usual_ns(Nanos batch_ns) const;
    // How early the next batch is to leave to find out whether that is of use; 0: it is not to.
    // It is due until it was in time to tell.
    Nanos trial_ns(Nanos batch_ns) const;
    static bool in_time(Nanos trial_ns, Nanos early_ns);
    // Whether the next batch is to wait until an instance is free, as what is compared with.
    bool late_due() const;

    // A batch expected to take `expected_ns` took `ran_ns` after it was sent to a free instance.
    void ran(Nanos expected_ns, Nanos ran_ns);
    // One that was sent `early_ns` before the reply that made an instance free took `ran_ns` after
    // that.
    void ran_early(Nanos expected_ns, Nanos ran_ns, Nanos early_ns);

    template <class Archive>
    void archive(Archive& archive) {
        late_.archive(archive);
        usual_.archive(archive);
        trials_.archive(archive);
        archive(known_ns_);
        archive(trial_ns_);
        archive(since_trial_);
        archive(since_late_);
        archive(trial_every_);
        archive(unclear_);
        archive.require(trial_every_ > 0);
    }

  private:
    static constexpr std::uint32_t kMemory = 128;

    struct Early {
        RecentMean saved{kMemory};  // what batches took less, after the reply before
        RecentMean early{kMemory};  // how early they were

        template <class Archive>
        void archive(Archive& archive) {
            saved.archive(archive);
            early.archive(archive);
        }
    };

    double saved_ns(const Early& by) const { return by.saved.mean() + late_.mean(); }
    double error_ns(const Early& by) const;
    void judge_usual(double least_ns);
    void judge_trials(double least_ns);
    void know(double early_ns);

    // Of what was sent to a free instance: what it took beyond what is expected. There are few.
    RecentMean late_{kMemory / 4};
    Early usual_;   // of what was sent about as early as is known to be of use
    Early trials_;  // of what was sent earlier
    Nanos known_ns_ = 0;
    Nanos trial_ns_ = kMillisecond / 2;
    std::uint64_t since_trial_ = 0;  // batches
    std::uint64_t since_late_ = 0;
    std::uint32_t trial_every_ = 16;
    std::uint32_t unclear_ = 0;  // trials in a row of which nothing could be said
};

}  // namespace infersched::engine
