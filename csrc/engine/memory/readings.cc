#include "engine/memory/readings.h"

#include <algorithm>
#include <cmath>

#include "engine/archive.h"

namespace infersched::engine {
namespace {

// Samples agree that differ by no more than this share and a piece of an allocator, a small one if
// enough do.
constexpr double kAgreeShare = 0.05;
constexpr double kSmallPieceBytes = 2.0 * (1 << 20);
constexpr double kPieceBytes = 20.0 * (1 << 20);
// Levels of the servers' own use are told apart by so much.
constexpr double kLevelsApart = 1.5;
constexpr double kErrorShare = 0.25;

}  // namespace

bool MemoryReadings::surer_than(const MemoryReadings& other) const {
    if (by_own() != other.by_own()) return by_own();
    if (agreeing_ != other.agreeing_) return agreeing_ > other.agreeing_;
    return samples_ > other.samples_;
}

void MemoryReadings::measure(const ShownSize& shown, double used_bytes, double believed) {
    const double size = shown.size;
    const bool comparable =
        measured_ && shown.foreign == measured_foreign_ && used_bytes >= measured_used_;
    if (comparable && size > measured_size_) {
        const double bytes = (used_bytes - measured_used_) / shown.instances;
        if (measured_size_ > 0) {
            add_sample(bytes, size - measured_size_, believed, shown.instances);
        } else {
            first_bytes_ = bytes;
            first_size_ = size;
        }
    }
    if (!measured_ || size > measured_size_) least_used_ = kNoSizeLimit;
    least_used_ = std::min(least_used_, used_bytes);
    measured_size_ = measured_ ? std::max(measured_size_, size) : size;
    measured_ = true;
    measured_used_ = used_bytes;
    measured_foreign_ = shown.foreign;
    bound_base(shown.instances);
}

void MemoryReadings::match(double size, double bytes, double used_bytes) {
    const double error = std::abs(used_bytes - matched_used_ - bytes);
    const double most = std::min(bytes * kAgreeShare + kSmallPieceBytes, bytes / 2);
    if (size > matched_size_ && error <= most) matched_size_ = size;
    matched_used_ = used_bytes;
}

void MemoryReadings::measure_own(const ShownSize& shown, double own_bytes) {
    const double size = shown.size;
    const double moved = own_bytes - own_high_.bytes;
    if (size < own_high_.size || shown.foreign != own_foreign_) {
        restart_own(shown.foreign);
    } else if (moved < 0 || (size > 0 && size == own_high_.size && moved > kPieceBytes)) {
        // Another model was loaded or unloaded there: perhaps while this one grew, too.
        restart_own(shown.foreign);
        if (std::abs(moved) > kPieceBytes && own_agreed_ < kOwnCertain) doubt_own(shown.instances);
    }
    if (size <= 0) {
        own_empty_ = own_bytes;
        return;
    }
    own_high_ = {own_bytes, size};
    if (own_low_.size <= 0) own_low_ = own_high_;
    const double last = own_mid_.size > 0 ? own_mid_.size : own_low_.size;
    if (size < last * kLevelsApart) return;
    if (own_mid_.size > 0) judge_own(shown.instances);
    if (own_low_.size < size) own_mid_ = own_high_;
}

// What was taken up to the last level and since then is so much a row in both, or another model was
// loaded at one of these times.
void MemoryReadings::judge_own(std::uint32_t instances) {
    const auto bytes_per_size = [](const Sample& from, const Sample& to) {
        return (to.bytes - from.bytes) / (to.size - from.size);
    };
    const double expected = bytes_per_size(own_low_, own_mid_) * (own_high_.size - own_mid_.size);
    const double off =
        kPieceBytes * (own_high_.size - own_low_.size) / (own_mid_.size - own_low_.size);
    const double error = std::abs(own_high_.bytes - own_mid_.bytes - expected);
    if (error > expected * kAgreeShare + off) {
        // Levels that agreed before are not to blame.
        own_low_ = by_own() ? own_high_ : own_mid_;
        own_mid_ = {};
        own_empty_ = kNoSizeLimit;
        return doubt_own(instances);
    }
    bytes_per_row_ = bytes_per_size(own_low_, own_high_) / instances;
    if (own_empty_ < kNoSizeLimit) {
        const double first = (own_low_.bytes - own_empty_) / instances;
        base_bytes_ = std::max(first - bytes_per_row_ * own_low_.size, 0.0);
        base_known_ = true;
    } else {
        bound_base(instances);
    }
    own_agreed_ = std::min(own_agreed_ + 1, kOwnCertain);
}

// The servers were started anew, gave something back, or other models took some, too. What is known
// stays: it is of levels before that.
void MemoryReadings::restart_own(std::uint64_t foreign) {
    own_low_ = own_mid_ = own_high_ = {};
    own_empty_ = kNoSizeLimit;
    own_foreign_ = foreign;
}

void MemoryReadings::doubt_own(std::uint32_t instances) {
    if (!by_own() || --own_agreed_ > 0 || samples_ == 0) return;
    bytes_per_row_ = fitted(instances);
}

// What the first batch took, of which all instances together have taken no more than is used.
void MemoryReadings::bound_base(std::uint32_t instances) {
    if (by_own() || first_size_ <= 0) return;
    const double used = least_used_ / instances;
    const double most = used - bytes_per_row_ * measured_size_;
    base_bytes_ = std::max(std::min(first_bytes_ - bytes_per_row_ * first_size_, most), 0.0);
    base_known_ = true;
}

void MemoryReadings::add_sample(double bytes, double size, double believed,
                                std::uint32_t instances) {
    if (believed > 0 && bytes > 0) {
        const double error = std::abs(believed * size / bytes - 1);
        error_ += (error - error_) * kErrorShare;
    }
    ring_[samples_ % kSamplesMax] = {bytes, size};
    ++samples_;
    const double per_row = fitted(instances);
    if (!by_own()) bytes_per_row_ = per_row;
}

// All bytes over all rows of the samples that agree with one of them, of which there are the most:
// what another tenant took or freed meanwhile differs every time. Allocators take memory in large
// pieces, so that single samples say little.
double MemoryReadings::fitted(std::uint32_t instances) {
    const std::size_t ring = std::min<std::uint64_t>(samples_, kSamplesMax);
    Sample best;
    for (const double piece : {kSmallPieceBytes, kPieceBytes}) {
        best = {};
        agreeing_ = 0;
        for (std::size_t i = 0; i < ring; ++i) {
            std::uint64_t count = 0;
            const Sample sum =
                agreeing_with(ring_[i].bytes / ring_[i].size, piece / instances, count);
            if (count < agreeing_ || (count == agreeing_ && sum.size <= best.size)) continue;
            agreeing_ = count;
            best = sum;
        }
        if (agreeing_ >= kSamplesConfirmed) break;
    }
    return best.bytes / best.size;
}

// Their sum, and how many they are.
MemoryReadings::Sample MemoryReadings::agreeing_with(double per_row, double off,
                                                     std::uint64_t& count) const {
    Sample sum;
    for (std::size_t i = 0; i < std::min<std::uint64_t>(samples_, kSamplesMax); ++i) {
        const double expected = per_row * ring_[i].size;
        if (std::abs(ring_[i].bytes - expected) > expected * kAgreeShare + off) continue;
        ++count;
        sum.bytes += ring_[i].bytes;
        sum.size += ring_[i].size;
    }
    return sum;
}

template <class Archive>
void MemoryReadings::archive(Archive& archive) {
    for (double* number :
         {&base_bytes_, &bytes_per_row_, &first_bytes_, &first_size_, &error_, &measured_size_,
          &measured_used_, &least_used_, &matched_size_, &matched_used_}) {
        archive(*number);
    }
    for (Sample& sample : ring_) {
        archive(sample.bytes);
        archive(sample.size);
    }
    archive(base_known_);
    archive(samples_);
    archive(agreeing_);
    archive(measured_);
    archive(own_agreed_);
    for (Sample* level : {&own_low_, &own_mid_, &own_high_}) {
        archive(level->bytes);
        archive(level->size);
    }
    archive(own_empty_);
    archive(own_foreign_);
    archive(measured_foreign_);
}

template void MemoryReadings::archive(ArchiveWriter&);
template void MemoryReadings::archive(ArchiveReader&);

}  // namespace infersched::engine
