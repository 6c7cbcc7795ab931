#include "engine/memory_need.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/archive.h"

namespace infersched::engine {
namespace {

// Good batches after which the cap of an out-of-memory reply rises by a row.
constexpr std::uint64_t kGoodPerRow = 1000;
constexpr double kCapShare = 0.8;
constexpr double kStepShare = 0.1;
// Smaller than this share of what ran well, a batch did not fail for its size.
constexpr double kTellingShare = 0.5;
// Samples agree that differ by no more than this share and a piece of an allocator, a small one if
// enough do.
constexpr double kAgreeShare = 0.05;
constexpr double kSmallPieceBytes = 2.0 * (1 << 20);
constexpr double kPieceBytes = 20.0 * (1 << 20);
// Marks that differ less are taken as alike.
constexpr double kAlike = 0.05;
// Levels of the servers' own use are told apart by so much.
constexpr double kLevelsApart = 1.5;
constexpr double kErrorShare = 0.25;
constexpr double kBytesMax = 1e15;
// Allocators that give back this share of what they kept were started anew.
constexpr double kEmptiedShare = 0.5;

}  // namespace

std::uint32_t whole_rows(double size) {
    return static_cast<std::uint32_t>(std::clamp(std::floor(size), 0.0, 4294967295.0));
}

double size_after(double size, double row_size) {
    return size + std::max(row_size, size * kStepShare);
}

void MemoryNeed::set_instances(std::uint32_t instances) {
    if (marks_.size() == instances) return;
    marks_.resize(std::max(instances, 1u), 0.0);
    measured_ = false;
}

void MemoryNeed::forget_marks() {
    measured_ = false;
    std::fill(marks_.begin(), marks_.end(), 0.0);
    cap_ = kNoSizeLimit;
    good_size_ = half_good_ = 0;
    half_failed_ = kNoSizeLimit;
    raised_at_ = std::numeric_limits<Nanos>::min();
}

void MemoryNeed::note_away() { away_until_ = kNever; }

void MemoryNeed::note_return(Nanos now) {
    if (away_until_ == kNever) away_until_ = now;
}

void MemoryNeed::look_back(double used_bytes, bool measures) {
    if (away_until_ == std::numeric_limits<Nanos>::min()) return;
    const bool comparable = measured_ && known();
    if (comparable && !measures) return;
    away_until_ = std::numeric_limits<Nanos>::min();
    const double kept = held_bytes();
    const bool emptied = kept > 0 && measured_used_ - used_bytes >= kept * kEmptiedShare;
    if (emptied || !comparable) forget_marks();
}

bool MemoryNeed::prime(double base_bytes, double bytes_per_row, double size_high, bool fixed) {
    const auto sound = [](double bytes) { return bytes >= 0 && bytes <= kBytesMax; };
    if (!sound(base_bytes) || !sound(bytes_per_row) || !(size_high >= 0)) return false;
    // What was learned here is better than what was known before.
    if (fixed || fixed_ || (agreeing_ < kSamplesConfirmed && !by_own())) {
        base_bytes_ = base_bytes;
        bytes_per_row_ = bytes_per_row;
        primed_ = true;
        fixed_ = fixed;
    }
    for (double& mark : marks_) mark = std::max(mark, size_high);
    // That is of the server as it is now: no reading needs to tell whether it was started anew.
    if (size_high > 0 && away_until_ != kNever) away_until_ = std::numeric_limits<Nanos>::min();
    measured_ = false;
    return true;
}

// When others never rest, so many samples must do.
bool MemoryNeed::confirmed() const {
    return primed_ || by_own() || agreeing_ >= kSamplesConfirmed || samples_ >= kSamplesMax;
}

double MemoryNeed::added_bytes(double size, double mark) const {
    if (size <= mark) return 0;
    return (mark > 0 ? 0 : base_bytes_) + bytes_per_row_ * (size - mark);
}

double MemoryNeed::size_within(double bytes) const {
    if (mark() <= 0) bytes -= base_bytes_;
    if (bytes < 0) return mark();
    return bytes_per_row_ > 0 ? mark() + bytes / bytes_per_row_ : kNoSizeLimit;
}

// While the need is not known, a larger size is tried only after a reading that shows the last one.
// Once it is, sizes double: an estimate from small ones is not trusted far beyond them.
double MemoryNeed::next_size(Nanos measured_at, double row_size) const {
    if (primed_) return kNoSizeLimit;
    const double proven = largest();
    const double next = measured_at > raised_at_ ? size_after(proven, row_size) : proven;
    return confirmed() && measured_ ? std::max(next, 2 * measured_size_) : next;
}

// What has run is proven. Where nothing has, the last figures are all that is known.
void MemoryNeed::note_lost(double available_bytes) {
    lost_size_ = largest();
    if (lost_size_ <= 0 && confirmed()) lost_size_ = size_within(available_bytes);
    lost_good_ = 0;
}

void MemoryNeed::raise(std::vector<double>& running, Nanos now) {
    std::sort(running.begin(), running.end(), std::greater<>());
    for (std::size_t i = 0; i < std::min(running.size(), marks_.size()); ++i) {
        if (running[i] > marks_[i]) raised_at_ = now;
        marks_[i] = std::max(marks_[i], running[i]);
    }
}

// All that may be there is counted: the largest sizes, one for each instance. A size that is not
// beyond the least of them adds nothing to that.
void MemoryNeed::hold(double size) {
    marks_.back() = std::max(marks_.back(), size);
    std::sort(marks_.begin(), marks_.end(), std::greater<>());
}

double MemoryNeed::held_bytes() const {
    double bytes = 0;
    for (const double mark : marks_) bytes += added_bytes(mark, 0);
    return bytes;
}

// Halves of a size that failed twice say that it is too large once smaller ones end well: until
// then they may be of those that run out of memory in any size.
bool MemoryNeed::count_good(double size, double row_size, double cap_before) {
    const double cap = cap_;
    good_size_ = std::max(good_size_, size);
    good_rows_ = std::max(good_rows_, size / row_size);
    if (cap_before > 0) {
        half_good_ = std::max(half_good_, size);
        if (half_good_ >= half_failed_) {
            pardon(cap_before);
        } else if (halves_failed_ >= 2 && kCapShare * half_failed_ < cap_) {
            cut(half_failed_, half_row_size_);
        }
    }
    const bool steps = lost_size_ != kNoSizeLimit && count_good_lost(size, row_size);
    if (cap_ == kNoSizeLimit) return steps || cap_ != cap;
    if (size > cap_) {
        cap_ = size;
        good_ = 0;
    }
    if (++good_ >= kGoodPerRow) {
        good_ = 0;
        cap_ += failed_row_size_;
    }
    return steps || cap_ != cap;
}

// Whether a larger size may be tried without figures.
bool MemoryNeed::count_good_lost(double size, double row_size) {
    if (size < kTellingShare * lost_size() || ++lost_good_ < kGoodPerRow) return false;
    lost_good_ = 0;
    lost_size_ = size_after(lost_size(), row_size);
    return true;
}

void MemoryNeed::pardon(double cap_before) { cap_ = std::max(cap_, cap_before); }

// What is far smaller than what ran well, in bytes and in rows, says something of itself only.
bool MemoryNeed::fail(double size, double row_size) {
    ++out_of_memory_;
    const bool small = size < kTellingShare * std::min(good_size_, cap_) &&
                       size / row_size < kTellingShare * good_rows_;
    if (small) return false;
    half_good_ = 0;
    half_failed_ = kNoSizeLimit;
    halves_failed_ = 0;
    cut(size, row_size);
    return true;
}

// One of the halves failed and one as large did not: it holds what runs out in any company.
void MemoryNeed::fail_half(double size, double row_size, double cap_before) {
    ++out_of_memory_;
    if (size < half_failed_ * (1 - kStepShare) - row_size) halves_failed_ = 0;
    ++halves_failed_;
    if (size < half_failed_) half_row_size_ = row_size;
    half_failed_ = std::min(half_failed_, size);
    if (half_good_ >= half_failed_) pardon(cap_before);
}

// A framework that runs out of memory may first give back all it had kept: no more is proven than
// what is allowed now.
void MemoryNeed::cut(double size, double row_size) {
    failed_size_ = size;
    failed_row_size_ = row_size;
    const double rows = std::max(std::floor(kCapShare * size / row_size), 1.0);
    cap_ = std::min(cap_, rows * row_size);
    good_ = 0;
    good_size_ = std::min(good_size_, cap_);
    good_rows_ = std::min(good_rows_, rows);
    free_least_ = kNoSizeLimit;
    for (double& mark : marks_) mark = std::min(mark, cap_);
}

void MemoryNeed::note_free(double free_bytes, double headroom_bytes) {
    if (cap_ == kNoSizeLimit) return;
    free_least_ = std::min(free_least_, free_bytes);
    const double more = std::max(bytes_per_row_ * (failed_size_ - cap_), headroom_bytes);
    if (free_bytes - free_least_ < std::max(more, 1.0)) return;
    cap_ = confirmed() ? kNoSizeLimit : size_after(cap_, failed_row_size_);
    free_least_ = free_bytes;
    good_ = 0;
}

void MemoryNeed::measure(double used_bytes, std::uint64_t foreign) {
    const double size = mark();
    if (largest() > size * (1 + kAlike)) return;
    const bool comparable =
        measured_ && foreign == measured_foreign_ && used_bytes >= measured_used_;
    if (comparable && size > measured_size_) {
        const double bytes = (used_bytes - measured_used_) / static_cast<double>(marks_.size());
        if (measured_size_ > 0) {
            add_sample(bytes, size - measured_size_);
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
    measured_foreign_ = foreign;
    bound_base();
}

void MemoryNeed::measure_own(double own_bytes, std::uint64_t foreign) {
    const double size = mark();
    if (largest() > size * (1 + kAlike)) return;
    const double moved = own_bytes - own_high_.bytes;
    if (size < own_high_.size || foreign != own_foreign_) {
        restart_own(foreign);
    } else if (moved < 0 || (size > 0 && size == own_high_.size && moved > kPieceBytes)) {
        // Another model was loaded or unloaded there: perhaps while this one grew, too.
        restart_own(foreign);
        if (std::abs(moved) > kPieceBytes && own_agreed_ < kOwnCertain) doubt_own();
    }
    if (size <= 0) {
        own_empty_ = own_bytes;
        return;
    }
    own_high_ = {own_bytes, size};
    if (own_low_.size <= 0) own_low_ = own_high_;
    const double last = own_mid_.size > 0 ? own_mid_.size : own_low_.size;
    if (fixed_ || size < last * kLevelsApart) return;
    if (own_mid_.size > 0) judge_own();
    if (own_low_.size < size) own_mid_ = own_high_;
}

// What was taken up to the last level and since then is so much a row in both, or another model was
// loaded at one of these times.
void MemoryNeed::judge_own() {
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
        return doubt_own();
    }
    const auto instances = static_cast<double>(marks_.size());
    bytes_per_row_ = bytes_per_size(own_low_, own_high_) / instances;
    if (own_empty_ < kNoSizeLimit) {
        const double first = (own_low_.bytes - own_empty_) / instances;
        base_bytes_ = std::max(first - bytes_per_row_ * own_low_.size, 0.0);
    } else {
        bound_base();
    }
    own_agreed_ = std::min(own_agreed_ + 1, kOwnCertain);
    primed_ = false;
}

// The servers were started anew, gave something back, or other models took some, too. What is known
// stays: it is of levels before that.
void MemoryNeed::restart_own(std::uint64_t foreign) {
    own_low_ = own_mid_ = own_high_ = {};
    own_empty_ = kNoSizeLimit;
    own_foreign_ = foreign;
}

void MemoryNeed::doubt_own() {
    if (!by_own() || --own_agreed_ > 0 || fixed_ || samples_ == 0) return;
    bytes_per_row_ = fitted();
}

// What the first batch took, of which all instances together have taken no more than is used.
void MemoryNeed::bound_base() {
    if (fixed_ || primed_ || by_own() || first_size_ <= 0) return;
    const double used = least_used_ / static_cast<double>(marks_.size());
    const double most = used - bytes_per_row_ * measured_size_;
    base_bytes_ = std::max(std::min(first_bytes_ - bytes_per_row_ * first_size_, most), 0.0);
}

void MemoryNeed::add_sample(double bytes, double size) {
    if (confirmed() && bytes > 0) {
        const double error = std::abs(bytes_per_row_ * size / bytes - 1);
        error_ += (error - error_) * kErrorShare;
    }
    ring_[samples_ % kSamplesMax] = {bytes, size};
    ++samples_;
    const double per_row = fitted();
    if (fixed_ || by_own() || (primed_ && agreeing_ < kSamplesConfirmed)) return;
    primed_ = false;
    bytes_per_row_ = per_row;
}

// All bytes over all rows of the samples that agree with one of them, of which there are the most:
// what another tenant took or freed meanwhile differs every time. Allocators take memory in large
// pieces, so that single samples say little.
double MemoryNeed::fitted() {
    const std::size_t ring = std::min<std::uint64_t>(samples_, kSamplesMax);
    Sample best;
    for (const double piece : {kSmallPieceBytes, kPieceBytes}) {
        best = {};
        agreeing_ = 0;
        for (std::size_t i = 0; i < ring; ++i) {
            std::uint64_t count = 0;
            const Sample sum = agreeing_with(ring_[i].bytes / ring_[i].size, piece, count);
            if (count < agreeing_ || (count == agreeing_ && sum.size <= best.size)) continue;
            agreeing_ = count;
            best = sum;
        }
        if (agreeing_ >= kSamplesConfirmed) break;
    }
    return best.bytes / best.size;
}

// Their sum, and how many they are.
MemoryNeed::Sample MemoryNeed::agreeing_with(double per_row, double piece,
                                             std::uint64_t& count) const {
    const double off = piece / static_cast<double>(marks_.size());
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
void MemoryNeed::archive(Archive& archive) {
    archive(marks_);
    archive(primed_);
    archive(fixed_);
    for (double* number :
         {&base_bytes_, &bytes_per_row_, &first_bytes_, &first_size_, &error_, &measured_size_,
          &measured_used_, &least_used_, &cap_, &lost_size_, &failed_size_, &failed_row_size_,
          &free_least_, &good_size_, &good_rows_, &half_good_, &half_failed_, &half_row_size_}) {
        archive(*number);
    }
    for (Sample& sample : ring_) {
        archive(sample.bytes);
        archive(sample.size);
    }
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
    archive(raised_at_);
    archive(away_until_);
    archive(halves_failed_);
    archive(good_);
    archive(lost_good_);
    archive(out_of_memory_);
    archive(takes_);
    archive.require(!marks_.empty());
}

template void MemoryNeed::archive(ArchiveWriter&);
template void MemoryNeed::archive(ArchiveReader&);

}  // namespace infersched::engine
