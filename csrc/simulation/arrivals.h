// When the requests of one model arrive: random processes, a rate that changes, or recorded times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/time.h"
#include "simulation/random.h"

namespace infersched::simulation {

enum class ArrivalKind : std::uint8_t {
    kPoisson,   // exponential gaps
    kGamma,     // gamma gaps of `shape`; below 1 in bursts, 1 is Poisson
    kOnOff,     // Poisson during exponential on phases, nothing during exponential off phases
    kSeries,    // Poisson whose rate is rates_per_s[i] during step i; then nothing
    kRecorded,  // at times_ns; then nothing
};

struct ArrivalPlan {
    ArrivalKind kind = ArrivalKind::kPoisson;
    double rate_per_s = 0;  // mean, off phases included; unused by series and recorded times
    double shape = 1;
    Nanos on_mean_ns = kSecond;
    Nanos off_mean_ns = kSecond;
    std::vector<double> rates_per_s;
    Nanos step_ns = kSecond;
    std::vector<Nanos> times_ns;  // ascending

    // Requests a second over the whole plan.
    double mean_per_s() const;
};

class Arrivals {
  public:
    Arrivals(ArrivalPlan plan, std::uint64_t seed);
    // The time of the next request, not before the one before; kNever after the last.
    Nanos next();

  private:
    double on_off_gap();
    Nanos next_of_series();

    ArrivalPlan plan_;
    Random random_;
    double mean_gap_ns_ = 0;
    double at_ns_ = 0;       // unrounded, so that gaps do not lose their fractions
    double on_left_ns_ = 0;  // of the present on phase
    std::size_t index_ = 0;
};

}  // namespace infersched::simulation
