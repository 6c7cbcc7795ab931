#include "engine/memory/device_memory.h"

#include <algorithm>

#include "engine/archive.h"

namespace infersched::engine {
namespace {

// What is told apart; more counts with the last.
constexpr std::size_t kLeftMax = 64;

}  // namespace

double Device::unreserved_bytes() const {
    return static_cast<double>(memory.free_bytes) - static_cast<double>(memory.headroom_bytes) -
           static_cast<double>(held_bytes());
}

double Device::available_bytes() const {
    return unreserved_bytes() - static_cast<double>(reserved_bytes_);
}

std::uint64_t Device::left_bytes() const {
    std::uint64_t bytes = 0;
    for (const Left& left : left_) bytes += left.bytes;
    return bytes;
}

void Device::leave(std::uint64_t bytes, Nanos since) {
    if (bytes == 0) return;
    reserved_bytes_ += bytes;
    if (left_.size() < kLeftMax) {
        left_.push_back({since, bytes});
    } else {
        left_.back().since = std::max(left_.back().since, since);
        left_.back().bytes += bytes;
    }
}

void Device::read(const DeviceMemory& reading) {
    const std::uint64_t loads = memory.loads;
    const bool is_new = !memory.known || reading.measured_at > memory.measured_at;
    memory = reading;
    if (reading.known && is_new) last_unreserved_ = unreserved_bytes();
    // What a model takes that is loaded is no batch's: figures of before are not comparable.
    if (!reading.known) {
        memory.loads = loads;
    } else if (reading.loads != loads) {
        ++takers;
    }
    seen |= reading.known;
    const auto shown = [&](const Left& left) { return left.since < shown_until(); };
    for (const Left& left : left_) {
        if (shown(left)) reserved_bytes_ -= left.bytes;
    }
    left_.erase(std::remove_if(left_.begin(), left_.end(), shown), left_.end());
}

template <class Archive>
void Device::archive(Archive& archive) {
    archive(memory.known);
    archive(memory.free_bytes);
    archive(memory.total_bytes);
    archive(memory.headroom_bytes);
    archive(memory.measured_at);
    archive(memory.fixed);
    archive(memory.own_bytes);
    archive(memory.own_measured_at);
    archive(memory.loads);
    archive(seen);
    archive(takers);
    archive(last_unreserved_);
    archive(reserved_bytes_);
    archive(held_bytes_);
    archive(inflight_);
    archive(unsettled_);
    archive.vector_size(left_, 16);
    for (Left& left : left_) {
        archive(left.since);
        archive(left.bytes);
    }
}

template void Device::archive(ArchiveWriter&);
template void Device::archive(ArchiveReader&);

}  // namespace infersched::engine
