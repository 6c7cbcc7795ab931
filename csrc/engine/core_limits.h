// What the steps of the engine are bounded by.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace infersched::engine {

// What a batch that is sent for its deadline gets beyond its expected time, at the least.
inline constexpr Nanos kAnswerMarginMinNs = 2 * kMillisecond;
// How long queued work waits for a backend to come back before it is failed.
inline constexpr Nanos kUnservedMaxNs = 5 * kSecond;
// How long after the loss of the last backend requests are still admitted, and how long a sequence
// waits for its own one to come back before its state counts as lost.
inline constexpr Nanos kUnservedAdmitNs = kSecond;
// The least time for which a batch that was given up keeps its slot.
inline constexpr Nanos kGivenUpMinNs = kMillisecond;
// Attempts of one batch, the first included, before its members get the error.
inline constexpr std::uint32_t kTriesMax = 8;
// What counts for several, as it may be meant for a member of the batch: an answer that the backend
// is unavailable, and a reset stream. After one of them the next one is the batch's own.
inline constexpr std::uint32_t kTriesOfDoubt = kTriesMax / 2;
// The same of one that cannot be cut, of those that ran out of device memory.
inline constexpr std::uint32_t kMemoryTriesMax = 3;
// How long devices are held free for one batch.
inline constexpr Nanos kHoldMaxNs = kSecond;
// Groups that are to have their devices for themselves come behind the others that are sent again.
inline constexpr std::uint64_t kAloneSequence = std::uint64_t{1} << 63;
// Of these batches of the models that share executors one may be led by a request of a low level
// that has aged.
inline constexpr std::uint32_t kBatchesPerAged = 8;
inline constexpr std::int32_t kBisectCostTenths = 10;

}  // namespace infersched::engine
