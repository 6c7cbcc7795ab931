// How long a batch of b rows holds its executor: l(b) of one model, version and class of backends,
// learned from the batches that ran.
//
//     observation ─▶ ring of its size ─ median ─┬─▶ table (sizes with enough observations)
//                                               └─▶ affine backbone (recursive least squares)
//     expected(b) = backbone corrected by the table    non-decreasing; expected(b)/b non-increasing
//                 * usual slow-down by others          but where well measured sizes deny it
//     bound(b)    = expected(b) * margin               margin: quantile of observed / expected
//
// A model that nothing is known of takes a few words and no memory besides. Equal calls in equal
// order give equal answers; queries cost O(1), largest_within O(log rows).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/time.h"

namespace infersched::engine {

// Sizes up to here have values of their own; beyond it the curve goes on as a straight line.
inline constexpr std::uint32_t kLatencyRowsMax = 4096;

// A batch that is said to have run for longer has not.
inline constexpr Nanos kLatencyRanMax = 3600 * kSecond;

// How good the predictions were. Counts since the model was made.
struct LatencyAccuracy {
    std::uint64_t observations = 0;  // that made sense
    std::uint64_t predicted = 0;     // of them, those that a prediction stood for before
    std::uint64_t beyond = 0;        // of those, the ones that took longer than bound()
    std::uint64_t ignored = 0;       // nonsense: observations and priors of no size or no time
    std::uint64_t drifts = 0;        // times that the past was found to hold no longer
    // Of log(observed / expected) over the last few hundred observations.
    double log_ratio_mean = 0;
    double log_ratio_deviation = 0;  // root of the mean square around the mean
};

// What was measured of one size lately.
struct LatencySize {
    std::uint32_t rows = 0;
    std::uint64_t observations = 0;  // since the size was first seen
    // Of the last few dozen; of a size that was not seen since the last drift what it is taken to
    // need now.
    Nanos median_ns = 0;
    Nanos longest_ns = 0;
};

class LatencyModel {
  public:
    // `attainment`: the share of batches that bound() is to cover, held to [0.5, 0.9999].
    explicit LatencyModel(double attainment = 0.99);
    static double held(double attainment);
    ~LatencyModel();
    LatencyModel(LatencyModel&&) noexcept;
    LatencyModel& operator=(LatencyModel&&) noexcept;

    double attainment() const { return attainment_; }
    void set_attainment(double attainment);

    // Of a prior that says anything: the first batch is often many times too long.
    static constexpr std::uint64_t kPriorBatchesMin = 3;
    // What is said of a size before anything ran: the mean of `count` batches (Triton's
    // batch_stats, a saved profile). Observations replace it, of other sizes too where they show
    // all priors to be off by a factor. A mean of fewer than kPriorBatchesMin is not taken.
    void prime(std::uint32_t rows, double mean_ns, std::uint64_t count);
    // A batch of `rows` rows ran for `ran_ns`, while `running` batches (itself included) ran on its
    // device, in the mean over its life; up to 1: nothing is known of others. Rows of 0, times that
    // are not within (0, 1 h]: counted as ignored.
    void observe(std::uint32_t rows, Nanos ran_ns, double running = 1);

    // Whether predictions mean something: there is a prior, or three observations (the first one of
    // a model is often many times too long). Otherwise expected() and bound() are 0.
    // What is never run is never learned: who refuses by bound() must let something run now and
    // then where it refuses everything, or one bad spell lasts for ever.
    bool known() const;
    // Whether so few batches ran that the next one may well deny what they say.
    bool young() const;
    // The usual time of a batch of `rows` rows when `running` batches run on its device; 0: as many
    // as did beside those of late. How many run when a batch starts says little of how many will
    // over its life: others join it, and some leave it. The margin covers the difference.
    Nanos expected(std::uint32_t rows, double running = 0) const;
    // What a batch takes at most, with the probability asked for: for the arithmetic of deadlines.
    // Non-decreasing in rows, not below expected().
    Nanos bound(std::uint32_t rows) const;
    // The largest batch up to `rows_max` whose bound() is at most `budget_ns`; 0: none.
    std::uint32_t largest_within(Nanos budget_ns, std::uint32_t rows_max) const;
    // bound / expected of the sizes that are well known, >= 1.
    double margin() const;
    // The mean of observed / expected of late, about.
    double mean_ratio() const;
    // What margin() is about if this share is to be covered.
    double margin_of(double attainment) const;
    // The largest batch to risk now: at most max(`step` rows, 10 %) above the largest one measured
    // since the last slow-down; batches grow by `step`. At least 1 unless `rows_max` is 0.
    std::uint32_t rows_trusted(std::uint32_t rows_max, std::uint32_t step = 1) const;
    // The largest size observed or primed; 0: none.
    std::uint32_t rows_measured() const;
    // The backbone alpha * rows + beta, neither negative; both 0 when nothing is known.
    double alpha_ns() const;
    double beta_ns() const;
    // Factor on l(b) while `running` batches share the device; 0: as in expected().
    double slowdown(double running) const;

    // The usual size of log(observed / expected).
    double scale() const;
    // Whether the size has enough observations for a time of its own.
    bool well_known(std::uint32_t rows) const;
    // Two sizes tell what a row more takes; after one, it is a guess.
    bool slope_known() const;
    // Whether the size was observed or primed and there are predictions.
    bool heard_of(std::uint32_t rows) const;
    static bool sensible_prior(std::uint32_t rows, double mean_ns, std::uint64_t count);
    // Whether all sizes that are surely known here take the same there, up to this part of it. What
    // is guessed tells of no difference: it might never be run again, and differ for ever.
    bool like(const LatencyModel& other, double part) const;
    // What is known here, of something that takes exp(log_shift) times as long, as a prior.
    LatencyModel shifted(double log_shift) const;

    LatencyAccuracy accuracy() const;
    // As in accuracy(), at no cost.
    std::uint64_t observations() const;
    std::uint64_t drifts() const;
    std::uint64_t ignored() const { return ignored_; }
    std::vector<LatencySize> sizes() const;  // those observed, by rows
    std::size_t memory_bytes() const;        // allocated, besides this object

    // Everything, for ArchiveWriter and ArchiveReader: a loaded model answers and learns exactly as
    // the saved one.
    template <class Archive>
    void archive(Archive& archive);

  private:
    struct State;
    State& state();
    // Ready to predict; null when nothing is known.
    const State* predicting() const;

    double attainment_;
    std::uint64_t ignored_ = 0;
    std::unique_ptr<State> state_;  // made by the first observation or prior
};

}  // namespace infersched::engine
