// By how much batches outlast their prediction: a quantile of observed / predicted that is kept at
// the share asked for by what happens.
//
// The quantile over the last ratios is right when tomorrow is like yesterday. Adaptive conformal
// inference (Gibbs and Candès, 2021) makes it right in the long run whatever happens: every batch
// that took longer moves the quantile up, every other one a little down.
//
// Stalls are no part of that, of up to one batch in six: a margin for one batch in thirty that
// takes a hundred times as long leaves no time for any batch, and would be kept until a thousand
// others have run. They come on top of the share that may outlast the bound; with a margin for them
// even fewer requests would be in time.
//
// What was noise for a while and is over is forgotten when so many batches in a row stayed so far
// below the margin that chance has no part in it: the window would keep it for a thousand batches,
// of one row each if the margin leaves no time for more. Where it comes back, the next time more
// batches are waited for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "engine/sorted_window.h"

namespace infersched::engine {

// The largest ratio of the last two blocks of batches.
class LatencyCalm {
  public:
    // Whether a block is full: what is below is told of it and the one before. Then comes next().
    bool add(double log_ratio, double attainment);
    std::size_t batches() const { return count_ + count_before_; }
    double largest() const { return std::max(largest_, largest_before_); }
    void next();
    // What they say was taken for all there is, `aged` batches after the first one.
    void took(std::uint64_t aged);
    // They say nothing of those that come now.
    void begin();

    template <class Archive>
    void archive(Archive& archive) {
        for (double* word : {&largest_, &largest_before_}) archive(*word);
        for (std::uint32_t* word : {&count_, &count_before_, &times_}) archive(*word);
        archive(took_at_);
        archive.require(times_ > 0);
    }

  private:
    double largest_ = 0;
    double largest_before_ = std::numeric_limits<double>::infinity();  // of none
    std::uint32_t count_ = 0;
    std::uint32_t count_before_ = 0;
    std::uint32_t times_ = 1;  // as large as usual
    std::uint64_t took_at_ = 0;
};

class LatencyMargin {
  public:
    LatencyMargin() : ratios_(kRatios) {}

    // A batch took exp(log_ratio) times the prediction of a size that is well known.
    void learn(double log_ratio, bool beyond, double attainment);
    // Ratios between batches of one size, before there were predictions.
    void learn_spread(double log_ratio);
    // Another share is asked for from now on.
    void retarget() { started_ = false; }
    // One more batch of any size ran.
    void age();
    // A batch of a size that is not well known outlasted the bound by exp(log_excess).
    void widen(double log_excess);
    // Predictions were wrong by exp(log_shift) for the last `batches` batches and are mended now.
    void drifted(double log_shift, std::size_t batches, double attainment);

    // The logarithm of the margin, >= 0 and bounded.
    double log_margin(double attainment) const;
    // What it is about if another share is asked for.
    double log_margin_of(double attainment) const;
    // The usual size of a log ratio's deviation, by its quantiles.
    double scale() const;
    // The mean of the log ratios, about.
    double mean() const;
    const SortedWindow& ratios() const { return ratios_; }

    template <class Archive>
    void archive(Archive& archive) {
        ratios_.archive(archive);
        archive(started_);
        archive(miss_share_);
        archive(widened_);
        archive(aged_);
        archive(drifted_at_);
        calm_.archive(archive);
    }

  private:
    static constexpr std::uint32_t kRatios = 1024;

    double ratio_beyond(double share) const;
    double quantile_log(double attainment) const;
    void calm_down(double attainment);
    double stalled_log() const;
    std::size_t regular() const;

    SortedWindow ratios_;
    bool started_ = false;
    double miss_share_ = 0;  // the quantile in use is 1 - this; below 0: beyond the largest ratio
    double widened_ = 0;     // passing, on top
    std::uint64_t aged_ = 0;
    std::uint64_t drifted_at_ = 0;
    LatencyCalm calm_;
};

}  // namespace infersched::engine
