// Looks ahead at executors of which none is free, and beside batches that leave some to others.
#include <cstdio>
#include <cstdlib>

#include "engine/admission/lookahead.h"

using namespace infersched;
using namespace infersched::engine;

namespace {

void must(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
}

struct World {
    ModelPolicy policy;
    LatencyModel latency;
    Lookahead lookahead;

    explicit World(std::uint32_t slots) {
        policy.rows_max = 4;
        lookahead.start(kSecond, kNever, slots);
    }
    Lookahead::Group& add_group() {
        Lookahead::Group& group = lookahead.add_group();
        group.policy = &policy;
        group.latency = &latency;
        return group;
    }
    void add_requests(std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) {
            Lookahead::Waiting waiting;
            waiting.key = {2, static_cast<std::uint32_t>(i), kNever, i};
            waiting.arrival = kSecond;
            waiting.rows = 1;
            waiting.asked_for = i + 1 == count;
            lookahead.add(waiting);
        }
    }
};

void check_never_free() {
    World world(1);
    world.lookahead.add_executor(kNever);
    world.add_group();
    world.add_requests(4);
    must(world.lookahead.run() == Lookahead::Verdict::kInTime, "it goes when there is one");
}

std::int64_t effort_beside(std::uint32_t batches) {
    World world(1000);
    world.lookahead.add_executor(kSecond);
    HeldBatches held;
    for (std::uint32_t i = 0; i < batches; ++i) held.add({2 * kSecond, 1});
    world.lookahead.add_held(held);
    world.add_group().reserve.executors = 1;
    world.add_requests(4);
    must(world.lookahead.run() == Lookahead::Verdict::kInTime, "there is a place");
    return world.lookahead.effort();
}

}  // namespace

int main() {
    check_never_free();
    must(effort_beside(800) > effort_beside(0) + 100, "to look at what runs is effort");
    return 0;
}
