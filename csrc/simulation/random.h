// Random numbers that are the same with every compiler and standard library: a run of the simulator
// is reproducible from its seed.
#pragma once

#include <cstdint>

namespace infersched::simulation {

// xoshiro256++ (Blackman, Vigna 2019), its state filled by SplitMix64.
class Random {
  public:
    explicit Random(std::uint64_t seed);
    std::uint64_t next();
    // In (0, 1]: its logarithm is finite.
    double unit();
    double exponential();        // mean 1
    double normal();             // mean 0, deviation 1; the polar method
    double gamma(double shape);  // scale 1, shape > 0; Marsaglia and Tsang 2000

  private:
    std::uint64_t state_[4];
    double spare_normal_ = 0;
    bool has_spare_ = false;
};

}  // namespace infersched::simulation
