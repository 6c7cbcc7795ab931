#include "simulation/random.h"

#include <cmath>

namespace infersched::simulation {

namespace {

std::uint64_t rotated(std::uint64_t x, int by) { return x << by | x >> (64 - by); }

}  // namespace

Random::Random(std::uint64_t seed) {
    for (std::uint64_t& word : state_) {
        std::uint64_t z = (seed += 0x9e3779b97f4a7c15u);
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        word = z ^ z >> 31;
    }
}

std::uint64_t Random::next() {
    const std::uint64_t result = rotated(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = rotated(state_[3], 45);
    return result;
}

double Random::unit() { return (static_cast<double>(next() >> 11) + 1.0) * 0x1p-53; }

double Random::exponential() { return -std::log(unit()); }

double Random::normal() {
    if (has_spare_) {
        has_spare_ = false;
        return spare_normal_;
    }
    double x = 0;
    double y = 0;
    double square = 0;
    do {
        x = 2 * unit() - 1;
        y = 2 * unit() - 1;
        square = x * x + y * y;
    } while (square >= 1 || square == 0);
    const double factor = std::sqrt(-2 * std::log(square) / square);
    spare_normal_ = y * factor;
    has_spare_ = true;
    return x * factor;
}

double Random::gamma(double shape) {
    if (shape < 1) {  // a gamma of shape + 1, brought back by a power of a uniform
        const double boosted = gamma(shape + 1);
        return boosted * std::pow(unit(), 1 / shape);
    }
    const double d = shape - 1.0 / 3;
    const double c = 1 / std::sqrt(9 * d);
    for (;;) {
        const double x = normal();
        const double root = 1 + c * x;
        if (root <= 0) continue;
        const double v = root * root * root;
        if (std::log(unit()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
}

}  // namespace infersched::simulation
