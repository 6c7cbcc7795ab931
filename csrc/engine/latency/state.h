// What a latency model keeps of a model that ran or was primed.
#pragma once

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

struct LatencySizeRecord {
    static constexpr std::uint32_t kWindow = 64;

    std::uint32_t rows = 0;
    std::uint32_t prior_drifts = 0;  // since the prior was measured, or said
    double prior_ns = 0;  // 0: none; what held before a drift, brought to now, is one too
    std::uint64_t observations = 0;
    std::uint64_t last_seen = 0;
    std::uint64_t confirmed_at = 0;  // when it last took what it was thought to, or more
    SortedWindow window{kWindow};    // ns, without the slow-down by others

    bool backed() const;
    // Seen often, and confirmed lately, as observations of all sizes go: so many up to now.
    bool trusted(std::uint64_t observed) const;
};

struct LatencyModel::State {
    // -- learning (latency/model.cc) -------------------------------------------------------------
    void prime(std::uint32_t rows, double mean_ns);
    void observe(std::uint32_t rows, Nanos ran_ns, std::uint32_t running, double attainment);
    void judge(const LatencySizeRecord* size, std::uint32_t rows, Nanos ran_ns,
               std::uint32_t running, double attainment);
    void add(LatencySizeRecord* size, std::uint32_t rows, double ns);
    // The weight of a size in the backbone.
    double tail_weight(std::uint32_t rows) const;
    void drifted(const LatencyDrift::Change& change, double attainment);
    // Every size takes exp(log_shift) times as long, until it is seen again.
    void shift(double log_shift);
    LatencySizeRecord* find(std::uint32_t rows);
    LatencySizeRecord* find_or_make(std::uint32_t rows);
    bool make_room();
    bool known() const;

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
    double factor(std::uint32_t running) const {
        return slowdown.factor(running == 0 ? 0 : LatencySlowdown::held(running));
    }
    // Of the curve as it is, without slow-down.
    double expected_ns(std::uint32_t rows) const;

    template <class Archive>
    void archive(Archive& archive);

    std::vector<LatencySizeRecord> sizes;  // by rows
    LatencyBackbone backbone;
    LatencyMargin margin;
    LatencyDrift drift;
    LatencySlowdown slowdown;
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
