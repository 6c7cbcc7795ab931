#include "engine/latency/backbone.h"

#include <algorithm>

namespace infersched::engine {
namespace {

// What was learned in a direction weighs this much after one more observation in that direction.
constexpr double kForgetting = 0.99;
// What the first guess of the slope weighs, in observations.
constexpr double kGuessWeight = 1e-4;
// Below this share the two directions cannot be told apart any more, or what was learned first is
// so much slower than what comes now that nothing would move it.
constexpr double kSingular = 1e-11;

}  // namespace

void LatencyBackbone::learn(double rows, double ns, double weight) {
    const double a = rows / ns;
    const double b = 1 / ns;
    if (!known_) begin(rows, ns);
    // Forgetting only in the direction of the observation: a long time with batches of one size
    // leaves the slope as it was.
    const double ra = aa_ * a + ab_ * b;
    const double rb = ab_ * a + bb_ * b;
    const double information = a * ra + b * rb;
    if (information > 0) {
        const double forgotten = (1 - kForgetting) * weight / information;
        aa_ -= forgotten * ra * ra;
        ab_ -= forgotten * ra * rb;
        bb_ -= forgotten * rb * rb;
    }
    aa_ += weight * a * a;
    ab_ += weight * a * b;
    bb_ += weight * b * b;
    const double determinant = aa_ * bb_ - ab_ * ab_;
    const double step = weight * (1 - (alpha_ * a + beta_ * b));
    const bool singular = !(determinant > kSingular * aa_ * bb_);
    if (!singular) {
        alpha_ += step * (bb_ * a - ab_ * b) / determinant;
        beta_ += step * (aa_ * b - ab_ * a) / determinant;
    }
    // Times of wildly different size can have no line of positive times: what came last begins
    // one anew, for there must be a prediction.
    if (singular || !(line().at(rows) > 0)) begin(rows, ns);
}

void LatencyBackbone::begin(double rows, double ns) {
    known_ = true;
    alpha_ = ns / (2 * rows);
    beta_ = ns / 2;
    ab_ = 0;
    aa_ = kGuessWeight * (rows / ns) * (rows / ns);
    bb_ = kGuessWeight / (ns * ns);
}

LatencyBackbone::Line LatencyBackbone::line() const {
    if (!known_) return {};
    // The best of the lines that are allowed, by the same squares.
    if (alpha_ < 0) return {0, std::max(0.0, beta_ + ab_ / bb_ * alpha_)};
    if (beta_ < 0) return {std::max(0.0, alpha_ + ab_ / aa_ * beta_), 0};
    return {alpha_, beta_};
}

void LatencyBackbone::rescale(double factor, double kept) {
    alpha_ *= factor;
    beta_ *= factor;
    const double weight = kept / (factor * factor);
    aa_ *= weight;
    ab_ *= weight;
    bb_ *= weight;
}

}  // namespace infersched::engine
