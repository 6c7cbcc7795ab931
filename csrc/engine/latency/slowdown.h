// How much longer a batch takes while others run on the same device: a factor per number of them.
//
// Learned from pairs: two batches of one size that ran one after the other, beside different
// numbers of others. What they differ by is the same for every size and holds however long the size
// takes; and as the noise of the one is that of the other, long tails favour neither.
//
// How many ran beside a batch is a mean over its life. Batches that share a device share its speed,
// so between two whole numbers it is the speed, the inverse of the factor, that is even.
#pragma once

#include <array>
#include <cstdint>

namespace infersched::engine {

class LatencySlowdown {
  public:
    static constexpr std::uint32_t kRunningMax = 16;  // more count as so many
    // Others that ran, in the mean, in sixteenths of a batch.
    using Beside = std::uint8_t;
    static Beside beside(double running);
    static double running(Beside beside);

    LatencySlowdown();

    // A batch ran; every one is told of.
    void count(Beside beside);
    // Two batches of one size took so long. Whether they are a pair: no batch is of two, or what
    // happened to it would count twice.
    bool learn(double ns, Beside beside, double other_ns, Beside other_beside);

    // The factor that is taken out of what batches took: 1 for those that ran alone.
    double factor(Beside beside) const { return 1 / speed(current_, beside); }
    // As long as what was learned is brought to new factors, predictions go by the former ones.
    bool changing() const { return changing_; }
    std::uint32_t version() const { return version_; }
    double former(Beside beside) const { return 1 / speed(former_, beside); }
    // Takes new factors where what was learned says so; whether it does.
    bool begin_change();
    void end_change();
    // The mean over the batches of late, by the factors that predictions go by.
    double usual() const { return usual_; }

    template <class Archive>
    void archive(Archive& archive) {
        for (Speeds* speeds :
             {&learned_, &current_, &former_, &pairs_, &against_, &lately_, &shares_}) {
            for (double& word : *speeds) archive(word);
        }
        for (double* word : {&error_, &all_pairs_, &usual_}) archive(*word);
        for (std::uint32_t* word : {&untaken_, &version_}) archive(*word);
        archive(shared_);
        archive(changing_);
    }

  private:
    // By number of batches; the last one is never reached, [0] means nothing.
    using Speeds = std::array<double, kRunningMax + 2>;

    static double speed(const Speeds& speeds, Beside beside);
    void find_usual();
    void move(std::uint32_t running, double part, double error, double against);
    double variance(std::uint32_t running) const;
    double variance_beside(Beside beside) const;
    double sure_log_factor(std::uint32_t running) const;

    Speeds learned_;  // 1 / factor; of a number that was not seen as of the next smaller one
    Speeds current_;
    Speeds former_;  // the same unless they are changing
    Speeds pairs_{};
    Speeds against_{};      // of log factors that it was compared with: their variance
    Speeds lately_{};       // errors of the last pairs: their mean
    Speeds shares_{};       // of the batches of late
    double error_ = 0;      // of the log ratios of pairs, the usual one
    double all_pairs_ = 0;  // up to a bound
    double usual_ = 1;
    std::uint32_t untaken_ = 0;  // pairs since factors were last looked at
    std::uint32_t version_ = 0;  // of current_
    bool shared_ = false;        // a batch ran beside others
    bool changing_ = false;
};

}  // namespace infersched::engine
