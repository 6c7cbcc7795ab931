// What a latency model keeps of a model that ran or was primed.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "engine/latency/backbone.h"
#include "engine/latency/drift.h"
#include "engine/latency/margin.h"
#include "engine/latency/model.h"
#include "engine/latency/slowdown.h"
#include "engine/sorted_window.h"

namespace infersched::engine {

inline Nanos whole_nanos(double ns) {
    constexpr double kMax = 9e18;
    return ns < kMax ? static_cast<Nanos>(std::ceil(ns)) : kNever;
}

struct LatencySizeRecord {
    static constexpr std::uint32_t kWindow = 64;

    std::uint32_t rows = 0;
    std::uint32_t prior_drifts = 0;  // since the prior was measured, or said
    double prior_ns = 0;  // 0: none; what held before a drift, brought to now, is one too
    std::uint64_t observations = 0;
    std::uint64_t last_seen = 0;
    std::uint64_t confirmed_at = 0;  // when it last took what it was thought to, or more
    // What it took at last, and beside how many (LatencySlowdown::Beside); 0: nothing yet.
    double last_ns = 0;
    std::uint8_t last_beside = 0;
    std::uint32_t slowdown_version = 0;  // that was taken out of the window
    // ns, without the slow-down by others, with LatencySlowdown::Beside as tags.
    SortedWindow window{kWindow};

    bool backed() const;
    // Seen often, and confirmed lately, as observations of all sizes go: so many up to now.
    bool trusted(std::uint64_t observed) const;
    // What one that is not takes at most, relative to its part of what a smaller one does.
    double steepness(std::uint64_t observed) const;
};

struct LatencyModel::State {
    // -- learning (latency/learning.cc) ----------------------------------------------------------
    void prime(std::uint32_t rows, double mean_ns);
    void observe(std::uint32_t rows, Nanos ran_ns, LatencySlowdown::Beside beside,
                 double attainment);
    void judge(const LatencySizeRecord* size, std::uint32_t rows, Nanos ran_ns, double attainment);
    void add(LatencySizeRecord* size, std::uint32_t rows, double ns,
             LatencySlowdown::Beside beside);
    // Brings the window to the factors that are taken out now.
    void bring(LatencySizeRecord& size) const;
    // So with a few sizes more, of those that are left.
    void bring_some();
    void end_change();
    // The weight of a size in the backbone.
    double tail_weight(std::uint32_t rows) const;
    void drifted(const LatencyDrift::Change& change, double attainment);
    // Every size takes exp(log_shift) times as long, until it is seen again.
    void shift(double log_shift);
    LatencySizeRecord* find(std::uint32_t rows);
    LatencySizeRecord* find_or_make(std::uint32_t rows);
    bool make_room();
    bool known() const;
    // Of a few batches only.
    bool young() const;
    void forget_warm_up(std::uint32_t rows, double ns);

    // -- predicting (latency/curve.cc) -----------------------------------------------------------
    // Makes curve_ns anew where observations have come since.
    void refresh(double attainment);
    void make_curve(double attainment);
    void review(LatencySizeRecord& size, double ns);
    double size_ns(const LatencySizeRecord& size, const LatencyBackbone::Line& line) const;
    // The logarithm of what the sizes that were seen take, relative to their priors.
    double shift_of_priors() const;
    void place_sizes();
    void join_sizes();
    void raise_curve();
    double factor(double running) const {
        return running == 0 ? slowdown.usual() : slowdown.former(LatencySlowdown::beside(running));
    }
    // Of the curve as it is, without slow-down.
    double expected_ns(std::uint32_t rows) const;
    double bound_ns(std::uint32_t rows) const {
        return expected_ns(rows) * slowdown.usual() * margin_factor;
    }

    template <class Archive>
    void archive(Archive& archive);

    std::vector<LatencySizeRecord> sizes;  // by rows
    LatencyBackbone backbone;
    LatencyMargin margin;
    LatencyDrift drift;
    LatencySlowdown slowdown;
    std::size_t brought = 0;  // while it is changing: sizes
    LatencyAccuracy accuracy;
    std::uint32_t rows_measured = 0;
    bool primed = false;
    std::uint64_t room_made_at = 0;
    double prior_log_shift = 0;  // shift_of_priors(), when the curve was made

    // expected of [0], 1, 2, ... rows; the last one goes on with tail_ns a row.
    std::vector<double> curve_ns = {0};
    double tail_ns = 0;
    LatencyBackbone::Line line;
    double margin_factor = 1;
    std::uint32_t unseen = 0;  // observations since the curve was made
    bool stale = true;
};

}  // namespace infersched::engine
