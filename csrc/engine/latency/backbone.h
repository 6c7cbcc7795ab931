// alpha * rows + beta through what was measured, by recursive least squares that forgets.
#pragma once

#include <initializer_list>

namespace infersched::engine {

class LatencyBackbone {
  public:
    struct Line {
        double alpha_ns = 0;
        double beta_ns = 0;
        double at(double rows) const { return alpha_ns * rows + beta_ns; }
    };

    bool empty() const { return !known_; }
    // A batch of `rows` takes `ns`, as far as is known now; errors count relative to `ns`. Of a
    // model whose first batch it is, half is taken to be beta.
    void learn(double rows, double ns, double weight);
    // Neither alpha nor beta negative, and not both 0 once something was learned.
    Line line() const;
    // Everything takes `factor` times as long now; what was learned weighs `kept` of what it did.
    void rescale(double factor, double kept);

    template <class Archive>
    void archive(Archive& archive) {
        archive(known_);
        for (double* word : {&alpha_, &beta_, &aa_, &ab_, &bb_}) archive(*word);
    }

  private:
    // With half of one time as beta.
    void begin(double rows, double ns);

    bool known_ = false;
    double alpha_ = 0;
    double beta_ = 0;
    double aa_ = 0, ab_ = 0, bb_ = 0;  // the information matrix
};

}  // namespace infersched::engine
