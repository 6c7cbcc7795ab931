// What the readings of one device teach of the need of a model's batches, at one placement there.
//
// Successive largest sizes are compared: what is used more with the larger one, its rows took, if
// it is as much a row as with others. What another tenant takes or frees differs every time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

namespace infersched::engine {

inline constexpr double kNoSizeLimit = std::numeric_limits<double>::infinity();

// Of the instances on the device, at the time of a reading that shows all that has run there.
struct ShownSize {
    double size = 0;  // that each has run, and none a larger one
    std::uint32_t instances = 1;
    std::uint64_t foreign = 0;  // how often other batches have taken memory of the device
};

class MemoryReadings {
  public:
    static constexpr std::uint64_t kSamplesConfirmed = 4;

    // `believed`: bytes a row as they are trusted in so far; 0: they are not.
    void measure(const ShownSize& shown, double used_bytes, double believed);
    // And what the servers' processes use, in which other tenants do not show: such levels, of
    // sizes that are far enough apart, are better than any samples. Other models that are loaded
    // there do show: three levels must agree.
    void measure_own(const ShownSize& shown, double own_bytes);
    // A batch of this size has run somewhere, which takes so much of a device: where what is used
    // grows by that, it was there.
    void match(double size, double bytes, double used_bytes);
    // That all instances there have run, by this.
    double matched_size() const { return matched_size_; }
    void limit_matched(double size) { matched_size_ = std::min(matched_size_, size); }
    // What is kept there is not known.
    void forget() { measured_ = false; }

    bool measured() const { return measured_; }
    double measured_size() const { return measured_size_; }
    double measured_used() const { return measured_used_; }
    bool by_own() const { return own_agreed_ > 0; }
    std::uint64_t samples() const { return samples_; }
    std::uint64_t agreeing() const { return agreeing_; }
    // When others never rest, so many samples must do.
    bool confirmed() const {
        return by_own() || agreeing_ >= kSamplesConfirmed || samples_ >= kSamplesMax;
    }
    bool surer_than(const MemoryReadings& other) const;
    double bytes_per_row() const { return bytes_per_row_; }
    bool base_known() const { return base_known_; }
    double base_bytes() const { return base_bytes_; }
    double error() const { return error_; }

    template <class Archive>
    void archive(Archive& archive);

  private:
    static constexpr std::size_t kSamplesMax = 16;
    // Levels that agreed after the need was known by others: it grew differently meanwhile.
    static constexpr std::uint32_t kOwnCertain = 2;

    struct Sample {
        double bytes = 0;
        double size = 0;
    };

    void judge_own(std::uint32_t instances);
    void restart_own(std::uint64_t foreign);
    void doubt_own(std::uint32_t instances);
    void add_sample(double bytes, double size, double believed, std::uint32_t instances);
    double fitted(std::uint32_t instances);
    Sample agreeing_with(double per_row, double off, std::uint64_t& count) const;
    void bound_base(std::uint32_t instances);

    double base_bytes_ = 0;
    bool base_known_ = false;
    double bytes_per_row_ = 0;
    double first_bytes_ = 0;  // that the first batch took; 0: not seen
    double first_size_ = 0;
    std::array<Sample, kSamplesMax> ring_;  // what successive largest sizes took
    std::uint64_t samples_ = 0;
    std::uint64_t agreeing_ = 0;  // of those in the ring, with what is believed
    double error_ = 0;
    // The last reading at a time when all marks were alike.
    bool measured_ = false;
    double measured_size_ = 0;
    double measured_used_ = 0;
    double least_used_ = kNoSizeLimit;  // since the marks are of that size
    std::uint64_t measured_foreign_ = 0;
    double matched_size_ = 0;
    double matched_used_ = kNoSizeLimit;  // at the last reading
    // What the servers' processes used at three sizes and at none. A size of 0: not known.
    Sample own_low_;
    Sample own_mid_;
    Sample own_high_;
    double own_empty_ = kNoSizeLimit;  // that: not known
    std::uint64_t own_foreign_ = 0;
    std::uint32_t own_agreed_ = 0;  // how often they did; 0: the need is not known by them
};

}  // namespace infersched::engine
