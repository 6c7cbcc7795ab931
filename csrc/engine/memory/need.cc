#include "engine/memory/need.h"

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
// Marks that differ less are taken as alike.
constexpr double kAlike = 0.05;
constexpr double kBytesMax = 1e15;
// Allocators that give back this share of what they kept were started anew.
constexpr double kEmptiedShare = 0.5;

// How many instances a device has at the least where none has more than `on_device`.
std::size_t least_on_device(std::size_t instances, std::size_t on_device, std::size_t devices) {
    const std::size_t elsewhere = on_device * (std::max<std::size_t>(devices, 1) - 1);
    return instances > elsewhere ? std::min(instances - elsewhere, on_device) : 1;
}

}  // namespace

std::uint32_t whole_rows(double size) {
    return static_cast<std::uint32_t>(std::clamp(std::floor(size), 0.0, 4294967295.0));
}

double size_after(double size, double row_size) {
    return size + std::max(row_size, size * kStepShare);
}

void MemoryNeed::set_instances(std::uint32_t instances, std::uint32_t on_device) {
    if (marks_.size() == instances && on_device_ == on_device) return;
    marks_.resize(std::max(instances, 1u), 0.0);
    on_device_ = std::clamp<std::uint32_t>(on_device, 1, instances);
    forget_readings();
    limit_matched(0);
}

void MemoryNeed::forget_readings() {
    for (MemoryReadings& readings : readings_) readings.forget();
}

void MemoryNeed::limit_matched(double size) {
    for (MemoryReadings& readings : readings_) readings.limit_matched(size);
}

void MemoryNeed::forget_marks() {
    forget_readings();
    limit_matched(0);
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

void MemoryNeed::look_back(std::size_t device, double used_bytes, bool measures) {
    if (away_until_ == std::numeric_limits<Nanos>::min()) return;
    const MemoryReadings& readings = readings_[device];
    const bool comparable = readings.measured() && known();
    if (comparable && !measures) return;
    limit_matched(0);
    away_until_ = std::numeric_limits<Nanos>::min();
    double kept = 0;
    for (std::size_t i = 1; i <= on_device_; ++i) kept += added_bytes(marks_[marks_.size() - i], 0);
    const bool emptied = kept > 0 && readings.measured_used() - used_bytes >= kept * kEmptiedShare;
    if (emptied || !comparable) forget_marks();
}

bool MemoryNeed::prime(double base_bytes, double bytes_per_row, double size_high, bool fixed) {
    const auto sound = [](double bytes) { return bytes >= 0 && bytes <= kBytesMax; };
    if (!sound(base_bytes) || !sound(bytes_per_row) || !(size_high >= 0)) return false;
    // What was learned here is better than what was known before.
    if (fixed || fixed_ || !well_learned(surest())) {
        base_bytes_ = base_bytes;
        bytes_per_row_ = bytes_per_row;
        primed_ = true;
        fixed_ = fixed;
    }
    for (double& mark : marks_) mark = std::max(mark, size_high);
    // That is of the server as it is now: no reading needs to tell whether it was started anew.
    if (size_high > 0 && away_until_ != kNever) away_until_ = std::numeric_limits<Nanos>::min();
    forget_readings();
    return true;
}

bool MemoryNeed::confirmed() const {
    const auto sure = [](const MemoryReadings& readings) { return readings.confirmed(); };
    return primed_ || std::any_of(readings_.begin(), readings_.end(), sure);
}

// The device whose readings tell most. Where some have fewer instances than others, all are taken
// to have the most: the one that has shows the largest need, which is the right one.
const MemoryReadings& MemoryNeed::surest() const {
    static const MemoryReadings kNone;
    const bool uneven = least_on_device(marks_.size(), on_device_, readings_.size()) < on_device_;
    const MemoryReadings* best = &kNone;
    for (const MemoryReadings& readings : readings_) {
        const bool both = uneven && well_learned(readings) && well_learned(*best);
        const bool more = readings.bytes_per_row() > best->bytes_per_row();
        if (both ? more : readings.surer_than(*best)) best = &readings;
    }
    return *best;
}

bool MemoryNeed::well_learned(const MemoryReadings& readings) {
    return readings.by_own() || readings.agreeing() >= MemoryReadings::kSamplesConfirmed;
}

double MemoryNeed::added_bytes(double size, double mark) const {
    if (size <= mark) return 0;
    return (mark > 0 ? 0 : base_bytes_) + bytes_per_row_ * (size - mark);
}

double MemoryNeed::size_within(double bytes, double size) const {
    if (size <= 0) bytes -= base_bytes_;
    if (bytes < 0) return mark();
    return bytes_per_row_ > 0 ? size + bytes / bytes_per_row_ : kNoSizeLimit;
}

// While the need is not known, a larger size is tried only after a reading that shows the last one.
// Once it is, sizes double: an estimate from small ones is not trusted far beyond them.
double MemoryNeed::next_size(std::size_t device, Nanos measured_at, double row_size) const {
    if (primed_) return kNoSizeLimit;
    const double proven = largest();
    const double next = measured_at > raised_at_ ? size_after(proven, row_size) : proven;
    const MemoryReadings& readings = readings_[device];
    const bool doubles = readings.measured() && confirmed();
    return doubles ? std::max(next, 2 * readings.measured_size()) : next;
}

// What has run is proven. Where nothing has, the last figures are all that is known.
void MemoryNeed::note_lost(double available_bytes) {
    lost_size_ = largest();
    if (lost_size_ <= 0 && confirmed()) lost_size_ = size_within(available_bytes, 0);
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
    for (std::size_t i = 0; i < on_device_; ++i) bytes += added_bytes(marks_[i], 0);
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
    limit_matched(cap_);
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

void MemoryNeed::learn(std::size_t device, const DeviceFigures& figures) {
    MemoryReadings& readings = readings_[device];
    const double taken = on_device_ * added_bytes(figures.shown_size, mark_on(device));
    readings.match(confirmed() ? figures.shown_size : 0, taken, figures.used_bytes);
    if (largest() > mark() * (1 + kAlike)) return;
    const ShownSize shown{mark(), on_device_, figures.takers - takes_};
    readings.measure(shown, figures.used_bytes, confirmed() ? bytes_per_row_ : 0);
    if (figures.tells_own) readings.measure_own(shown, figures.own_bytes);
    adopt(surest());
}

// What a model's batches take is the same on all devices.
void MemoryNeed::adopt(const MemoryReadings& readings) {
    const bool sure = well_learned(readings);
    if (fixed_ || (!sure && (primed_ || readings.samples() == 0))) return;
    primed_ = false;
    // Until all are known, these may be of the device with the fewest instances.
    const std::size_t least = least_on_device(marks_.size(), on_device_, readings_.size());
    const bool all = std::all_of(readings_.begin(), readings_.end(), well_learned);
    const double scale = all ? 1 : static_cast<double>(on_device_) / static_cast<double>(least);
    bytes_per_row_ = readings.bytes_per_row() * scale;
    if (readings.base_known()) base_bytes_ = readings.base_bytes() * scale;
}

template <class Archive>
void MemoryNeed::archive(Archive& archive) {
    archive(marks_);
    archive(primed_);
    archive(fixed_);
    for (double* number :
         {&base_bytes_, &bytes_per_row_, &cap_, &lost_size_, &failed_size_, &failed_row_size_,
          &free_least_, &good_size_, &good_rows_, &half_good_, &half_failed_, &half_row_size_}) {
        archive(*number);
    }
    archive.vector_size(readings_, 64);
    for (MemoryReadings& readings : readings_) readings.archive(archive);
    archive(on_device_);
    archive(raised_at_);
    archive(away_until_);
    archive(halves_failed_);
    archive(good_);
    archive(lost_good_);
    archive(out_of_memory_);
    archive(takes_);
    archive.require(!marks_.empty() && on_device_ > 0 && on_device_ <= marks_.size());
}

template void MemoryNeed::archive(ArchiveWriter&);
template void MemoryNeed::archive(ArchiveReader&);

}  // namespace infersched::engine
