#include "loadgen/arrivals.h"

#include <cmath>
#include <utility>

namespace infersched::loadgen {

Arrivals Arrivals::poisson(double rate_per_s, std::uint64_t seed) {
    Arrivals arrivals;
    if (rate_per_s <= 0) return arrivals;
    arrivals.mean_gap_ns_ = 1e9 / rate_per_s;
    arrivals.random_ = Random(seed);
    arrivals.advance();
    return arrivals;
}

Arrivals Arrivals::given(std::vector<Nanos> offsets) {
    Arrivals arrivals;
    arrivals.offsets_ = std::move(offsets);
    if (!arrivals.offsets_.empty()) arrivals.next_ = arrivals.offsets_.front();
    return arrivals;
}

void Arrivals::advance() {
    if (mean_gap_ns_ > 0) {
        at_ns_ -= std::log(random_.unit()) * mean_gap_ns_;
        next_ = static_cast<Nanos>(at_ns_);
        return;
    }
    if (next_ == kNever) return;
    ++index_;
    next_ = index_ < offsets_.size() ? offsets_[index_] : kNever;
}

}  // namespace infersched::loadgen
