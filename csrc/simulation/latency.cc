#include "simulation/latency.h"

#include <algorithm>
#include <cmath>

namespace infersched::simulation {

Latency Latency::affine(double alpha_ns, double beta_ns) {
    Latency latency;
    latency.alpha_ns_ = alpha_ns;
    latency.beta_ns_ = beta_ns;
    latency.table_ns_.resize(kRowsMax + 1);
    for (std::size_t rows = 1; rows <= kRowsMax; ++rows) {
        const double at = alpha_ns * static_cast<double>(rows) + beta_ns;
        latency.table_ns_[rows] = static_cast<Nanos>(std::llround(at));
    }
    return latency;
}

Latency Latency::table(const std::vector<Nanos>& measured_ns) {
    Latency latency;
    std::vector<Nanos>& table = latency.table_ns_;

    const std::size_t known = std::min(measured_ns.size(), kRowsMax);
    if (known == 0) return latency;
    table.resize(kRowsMax + 1);
    double sum_b = 0;
    double sum_l = 0;
    double sum_bb = 0;
    double sum_bl = 0;
    for (std::size_t rows = 1; rows <= known; ++rows) {
        table[rows] = std::max(table[rows - 1], measured_ns[rows - 1]);
        const double b = static_cast<double>(rows);
        const double l = static_cast<double>(table[rows]);
        sum_b += b;
        sum_l += l;
        sum_bb += b * b;
        sum_bl += b * l;
    }
    const double count = static_cast<double>(known);
    const double spread = count * sum_bb - sum_b * sum_b;
    latency.alpha_ns_ = spread > 0 ? (count * sum_bl - sum_b * sum_l) / spread : 0;
    latency.beta_ns_ = (sum_l - latency.alpha_ns_ * sum_b) / count;
    const Nanos step = known > 1 ? table[known] - table[known - 1] : 0;
    for (std::size_t rows = known + 1; rows <= kRowsMax; ++rows) {
        table[rows] = table[rows - 1] + step;
    }
    return latency;
}

std::size_t Latency::rows_within(Nanos budget_ns) const {
    const auto end = table_ns_.begin() + static_cast<std::ptrdiff_t>(rows_max_) + 1;
    const auto above = std::upper_bound(table_ns_.begin() + 1, end, budget_ns);
    return static_cast<std::size_t>(above - table_ns_.begin()) - 1;
}

}  // namespace infersched::simulation
