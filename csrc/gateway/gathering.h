// Replies of decoupled models that come fast, one by one, are gathered: each alone would cost a
// wake-up, a read, a turn and a write, here and in its client.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace infersched::gateway {

// One waits for others this long at the most,
inline constexpr Nanos kGatherNs = 250 * kMicrosecond;
// no longer than this part of the time since a request came or had its last reply (the next may be
// somebody's last),
inline constexpr Nanos kGatherPart = 8;
// and until so many are to be expected; where fewer than that would come it does not wait at all.
inline constexpr std::int64_t kGatheredMax = 8;
inline constexpr std::int64_t kGatheredMin = 2;
// A turn that more bytes came in has enough to do.
inline constexpr std::uint64_t kGatheredBytesMax = 64u << 10;
// Requests of other kinds do not wait: nothing is gathered so long after one has come.
inline constexpr Nanos kNotGatheredNs = 10 * kMillisecond;

class ReplyGathering {
  public:
    // To a request of a decoupled model.
    void reply_came(std::uint64_t bytes) {
        ++replies_;
        bytes_ += bytes;
    }
    void request_came_or_ended(Nanos now) { changed_at_ = now; }
    void other_request_came(Nanos now) { not_before_ = now + kNotGatheredNs; }
    // Asked at the end of a turn that began at `started` and left nothing to do: until when nothing
    // need be looked at.
    Nanos gather_until(Nanos started);

  private:
    std::uint64_t replies_ = 0;  // since it was asked
    std::uint64_t bytes_ = 0;
    Nanos changed_at_ = 0;
    Nanos turned_at_ = 0;       // the last turn with replies
    Nanos gap_ns_ = kGatherNs;  // from one to the next, a moving average
    Nanos not_before_ = 0;
};

}  // namespace infersched::gateway
