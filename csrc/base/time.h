// Time as every room sees it: int64 nanoseconds on the monotonic clock, handed in by the caller.
#pragma once

#include <cstdint>
#include <limits>

namespace infersched {

using Nanos = std::int64_t;

inline constexpr Nanos kNever = std::numeric_limits<Nanos>::max();
inline constexpr Nanos kMicrosecond = 1000;
inline constexpr Nanos kMillisecond = 1000 * kMicrosecond;
inline constexpr Nanos kSecond = 1000 * kMillisecond;

// a + b without overflow; kNever stays kNever.
inline Nanos add_saturating(Nanos a, Nanos b) {
    Nanos sum = 0;
    if (a == kNever || b == kNever || __builtin_add_overflow(a, b, &sum)) return kNever;
    return sum;
}

}  // namespace infersched
