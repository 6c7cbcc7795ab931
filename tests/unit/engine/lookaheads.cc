// A look ahead at executors of which none is free, ever.
#include <cstdio>

#include "engine/admission/lookahead.h"

using namespace infersched;
using namespace infersched::engine;

int main() {
    ModelPolicy policy;
    policy.rows_max = 4;
    LatencyModel latency;
    Lookahead lookahead;
    lookahead.start(kSecond, kNever, 1);
    lookahead.add_executor(kNever);
    Lookahead::Group& group = lookahead.add_group();
    group.policy = &policy;
    group.latency = &latency;
    for (std::uint64_t i = 0; i < 4; ++i) {
        Lookahead::Waiting waiting;
        waiting.key = {2, static_cast<std::uint32_t>(i), kNever, i};
        waiting.arrival = kSecond;
        waiting.rows = 1;
        waiting.asked_for = i == 3;
        lookahead.add(waiting);
    }
    const auto verdict = lookahead.run();
    if (verdict == Lookahead::Verdict::kInTime) return 0;
    std::fprintf(stderr, "verdict %d\n", static_cast<int>(verdict));
    return 1;
}
