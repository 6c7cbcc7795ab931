// Looks ahead at executors of which none is free, beside batches that leave some to others, and at
// groups that wait for rows beside others that do not.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

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
        lookahead.start(kSecond, kNever, slots, ~Levels{0});
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

// A quick model whose rows wait for more beside a slow one whose batch is full.
struct QuickAndSlow {
    World world;
    LatencyModel slow;

    explicit QuickAndSlow(std::initializer_list<Nanos> free_in) : world(free_in.size()) {
        world.policy.rows_max = 32;
        for (std::uint32_t rows = 1; rows <= 32; ++rows) {
            world.latency.prime(rows, (0.5 * rows + 3.5) * kMillisecond, 20);
            slow.prime(rows, (2.5 * rows + 12.5) * kMillisecond, 20);
        }
        for (const Nanos in : free_in) world.lookahead.add_executor(kSecond + in);
    }
    // Of what is `asked` for, the last row is the question.
    void add_quick(Nanos deadline_in, bool asked) {
        Lookahead::Group& group = world.add_group();
        group.target = 8;
        group.gather_ns = 10 * kMillisecond;
        add_rows(group, 3, 2, deadline_in, asked);
    }
    void add_slow(std::uint32_t rows, Nanos deadline_in, std::uint32_t level, bool asked) {
        Lookahead::Group& group = world.add_group();
        group.latency = &slow;
        add_rows(group, rows, level, deadline_in, asked);
    }

  private:
    void add_rows(Lookahead::Group& group, std::uint32_t rows, std::uint32_t level,
                  Nanos deadline_in, bool asked) {
        group.rows_trusted = 32;
        group.last_arrival = kSecond;
        for (std::uint32_t i = 0; i < rows; ++i) {
            const QueueKey key{level, sequence, kSecond + deadline_in, sequence};
            ++sequence;
            world.lookahead.add({key, kSecond, 1, group.target, asked && i + 1 == rows});
        }
    }

    std::uint32_t sequence = 1;
};

void check_what_waits_and_would_be_late_goes_first() {
    constexpr Nanos kMs = kMillisecond;
    QuickAndSlow quick({0});
    quick.add_quick(30 * kMs, true);
    quick.add_slow(12, 80 * kMs, 2, false);
    must(quick.world.lookahead.run() == Lookahead::Verdict::kInTime, "it waits no longer");

    const auto slow_beside_quick = [](std::initializer_list<Nanos> free_in) {
        QuickAndSlow slow(free_in);
        slow.add_slow(1, slow.slow.expected(1) + 2 * kMs, 4, true);
        slow.add_quick(14 * kMs, false);
        return slow.world.lookahead.run();
    };
    must(slow_beside_quick({0}) == Lookahead::Verdict::kLate, "it goes before a lower level");
    must(slow_beside_quick({0, 4 * kMs}) == Lookahead::Verdict::kInTime,
         "it goes on waiting where another executor is free in time");
}

}  // namespace

int main() {
    check_never_free();
    check_what_waits_and_would_be_late_goes_first();
    must(effort_beside(800) > effort_beside(0) + 100, "to look at what runs is effort");
    return 0;
}
