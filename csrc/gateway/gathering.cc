#include "gateway/gathering.h"

#include <algorithm>
#include <utility>

namespace infersched::gateway {

Nanos ReplyGathering::gather_until(Nanos started) {
    const auto replies = static_cast<std::int64_t>(std::exchange(replies_, 0));
    const std::uint64_t bytes = std::exchange(bytes_, 0);
    if (replies == 0) return 0;
    const Nanos passed = started - std::exchange(turned_at_, started);
    gap_ns_ += (std::min(passed / replies, kGatherNs) - gap_ns_) / 4;
    if (started < not_before_ || bytes > kGatheredBytesMax) return 0;
    const Nanos longest = std::min(kGatherNs, (started - changed_at_) / kGatherPart);
    if (gap_ns_ * kGatheredMin > longest) return 0;
    return started + std::min(gap_ns_ * kGatheredMax, longest);
}

}  // namespace infersched::gateway
