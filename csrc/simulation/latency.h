// l(b): how long a batch of b rows holds its executor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/time.h"

namespace infersched::simulation {

// Non-decreasing in b. Rows beyond rows_max() are never batched.
class Latency {
  public:
    static constexpr std::size_t kRowsMax = 1024;

    // alpha * b + beta, in ns; alpha and beta not negative, not both 0.
    static Latency affine(double alpha_ns, double beta_ns);
    // l(1), l(2), ... as measured; an affine tail through the last two points. A dip below an
    // earlier point is raised to it.
    static Latency table(const std::vector<Nanos>& measured_ns);

    bool empty() const { return table_ns_.empty(); }
    // l(rows); rows from 1 to kRowsMax, and 0, which takes no time.
    Nanos at(std::size_t rows) const { return table_ns_[rows]; }
    // Of a batch of the model.
    std::size_t rows_max() const { return rows_max_; }
    void bound_rows(std::size_t rows_max) {
        rows_max_ = std::clamp<std::size_t>(rows_max, 1, kRowsMax);
    }
    // The largest batch that takes at most `budget_ns`; 0 when none does.
    std::size_t rows_within(Nanos budget_ns) const;
    // Slope and intercept in ns: as given, or the least squares line through the table.
    double alpha_ns() const { return alpha_ns_; }
    double beta_ns() const { return beta_ns_; }

  private:
    std::vector<Nanos> table_ns_;
    std::size_t rows_max_ = kRowsMax;
    double alpha_ns_ = 0;
    double beta_ns_ = 0;
};

}  // namespace infersched::simulation
