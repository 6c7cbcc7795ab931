#include "engine/device_memory.h"

#include <algorithm>

#include "engine/archive.h"

namespace infersched::engine {
namespace {

// Ends that are told apart; further ones count as the last.
constexpr std::size_t kUnseenMax = 64;

}  // namespace

double Device::unreserved_bytes() const {
    return static_cast<double>(memory.free_bytes) - static_cast<double>(memory.headroom_bytes) -
           static_cast<double>(held_bytes());
}

double Device::available_bytes() const {
    return unreserved_bytes() - static_cast<double>(reserved_bytes_);
}

std::uint64_t Device::unseen_bytes() const {
    std::uint64_t bytes = 0;
    for (const Unseen& ended : unseen_) bytes += ended.bytes;
    return bytes;
}

void Device::reserve(std::uint64_t bytes) {
    reserved_bytes_ += bytes;
    ++inflight_;
}

void Device::settle(std::uint64_t bytes, Nanos now) {
    --inflight_;
    ++takers;
    if (memory.fixed) {
        reserved_bytes_ -= bytes;
        return;
    }
    if (unseen_.size() < kUnseenMax) {
        unseen_.push_back({now, bytes});
    } else {
        unseen_.back().since = std::max(unseen_.back().since, now);
        unseen_.back().bytes += bytes;
    }
}

void Device::read(const DeviceMemory& reading) {
    const std::uint64_t loads = memory.loads;
    memory = reading;
    // What a model takes that is loaded is no batch's: figures of before are not comparable.
    if (!reading.known) {
        memory.loads = loads;
    } else if (reading.loads != loads) {
        ++takers;
    }
    seen |= reading.known;
    // Nothing more will be learned of them where there are no readings.
    const auto shown = [&](const Unseen& ended) {
        return !reading.known || reading.fixed || ended.since < reading.measured_at;
    };
    for (const Unseen& ended : unseen_) {
        if (shown(ended)) reserved_bytes_ -= ended.bytes;
    }
    unseen_.erase(std::remove_if(unseen_.begin(), unseen_.end(), shown), unseen_.end());
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
    archive(reserved_bytes_);
    archive(held_bytes_);
    archive(inflight_);
    archive.vector_size(unseen_, 16);
    for (Unseen& ended : unseen_) {
        archive(ended.since);
        archive(ended.bytes);
    }
}

template void Device::archive(ArchiveWriter&);
template void Device::archive(ArchiveReader&);

}  // namespace infersched::engine
