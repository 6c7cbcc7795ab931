// What is planned for given demands, and how many batches may run for given ones that do.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "engine/admission/backlog.h"
#include "engine/batching/reserve.h"

using namespace infersched;
using namespace infersched::engine;

namespace {

std::size_t allocations = 0;

}  // namespace

void* operator new(std::size_t bytes) {
    ++allocations;
    if (void* memory = std::malloc(bytes)) return memory;
    throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

constexpr double kMs = 1e6;

void must(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "not so: %s\n", what);
    std::exit(1);
}

Demand demand(double budget_ms, double batch_ms, double busy, std::uint32_t level = 0) {
    Demand made;
    made.budget_ns = budget_ms * kMs;
    made.row_ns = made.batch_ns = batch_ms * kMs;
    made.rows_busy = busy;
    made.level = level;
    return made;
}

Demand slow(std::uint32_t level = 0) { return demand(600, 120, 1.0, level); }
Demand tight(double busy, std::uint32_t level = 0) { return demand(15, 2.5, busy, level); }

void check_levels() {
    // The load of lower priority is not what the slow one has to leave room for.
    std::vector<Demand> demands = {slow(), tight(0.5), demand(400, 2.5, 8.0, 1)};
    plan_reserves(demands, 4);
    const std::uint32_t beside_lower = demands[0].reserve.executors;
    demands = {slow(), tight(0.5)};
    plan_reserves(demands, 4);
    must(beside_lower == demands[0].reserve.executors, "lower priorities are left nothing");

    // Of equal reserves the one counts that is for the higher level, in whatever order they come.
    demands = {tight(0.5, 2), slow(1), tight(0.5, 0)};
    plan_reserves(demands, 4);
    must(demands[1].reserve.executors > 0 && demands[1].reserve.level == 0, "level 0 is left some");
}

// Two tight ones ask for the same reserve, and one of them yields to the other: the slow one
// gathers as much in whatever order they come.
void check_order() {
    Demand tightest = demand(6, 5, 0.04);
    Demand tighter = demand(9, 5, 0.06);
    Demand gathering = demand(50, 5, 0.2);
    tighter.root = gathering.root = 0.8;
    tighter.rows_fit = gathering.rows_fit = 9;
    std::vector<Demand> demands = {tightest, tighter, gathering};
    plan_reserves(demands, 2);
    const double rows = demands[2].rows_held;
    must(rows > 1, "there are fewer executors for it");
    demands = {tighter, tightest, gathering};
    plan_reserves(demands, 2);
    must(demands[2].rows_held == rows, "the order does not matter");
    must(demands[2].reserve.executors == 1, "one is left to both");
}

void check_rare() {
    std::vector<Demand> demands = {tight(0.05), slow()};
    plan_reserves(demands, 2);
    must(demands[1].reserve.executors == 1,
         "an executor is left to what is there every now and then");
    demands = {tight(0.01), slow()};
    plan_reserves(demands, 2);
    must(demands[1].reserve.executors == 0, "none is held back for next to nothing");
}

void check_many() {
    std::vector<Demand> demands = {tight(1.0), slow()};
    demands.resize(300, demand(1000, 2.5, 0.001));
    plan_reserves(demands, 4);
    must(demands[1].reserve.executors > 0, "some is left with many small ones beside");
}

void check_nested() {
    Backlog backlog;
    backlog.set_slots(4);
    for (Nanos end = 1; end <= 3; ++end) backlog.start({end * kSecond, 1});
    must(backlog.places(1, 0) == 0, "three leave one");
    must(backlog.places(3, 0) == 0, "what leaves three leaves that one as well");
    must(backlog.place_at(3, 0, kSecond, 0) == kSecond, "there is a place once one of them ends");
    backlog.end({kSecond, 1});
    must(backlog.places(3, 0) == 1, "then it has its own place");
}

void check_overdue() {
    Backlog backlog;
    backlog.set_slots(2);
    backlog.start({kSecond, 1, 2 * kSecond});
    must(backlog.places(1, kSecond) == 0, "a batch that is a bit late holds its place");
    must(backlog.places(1, 2 * kSecond) == 1, "one that hangs does not");
}

// Two that are to end at once, one of which hangs later: the other one of them ends.
void check_twins() {
    for (const Nanos ended : {2 * kSecond, 3 * kSecond}) {
        for (const Nanos first : {2 * kSecond, 3 * kSecond}) {
            Backlog backlog;
            backlog.set_slots(2);
            backlog.start({kSecond, 1, first});
            backlog.start({kSecond, 1, 5 * kSecond - first});
            backlog.end({kSecond, 1, ended});
            const bool holds = 5 * kSecond - ended > 2 * kSecond;
            must(backlog.places(1, 2 * kSecond) == (holds ? 0 : 1), "the one that runs counts");
        }
    }
}

// Of those that leave `left` or more, each behind the first of the executors there to be free.
Nanos one_by_one(const std::vector<RunningBatch>& out, std::uint32_t slots, std::uint32_t left,
                 std::uint32_t batches, Nanos batch_ns, Nanos now) {
    std::vector<Nanos> free(slots > left ? slots - left : 1, now);
    std::vector<Nanos> ends;
    for (const RunningBatch& batch : out) {
        if (batch.reserve >= left) ends.push_back(std::max(batch.end, now));
    }
    std::sort(ends.begin(), ends.end());
    ends.resize(std::min(ends.size(), free.size()));
    std::copy(ends.begin(), ends.end(), free.begin());
    for (; batches > 0; --batches) *std::min_element(free.begin(), free.end()) += batch_ns;
    return *std::min_element(free.begin(), free.end());
}

// Places there are and from when on there is one, by all batches that are out.
struct Expected {
    Expected(const std::vector<RunningBatch>& out, std::uint32_t slots, std::uint32_t reserve,
             std::uint32_t batches, Nanos batch_ns, Nanos now)
        : places(slots), place_at(now) {
        const auto ask = [&](std::uint32_t left) {
            place_at = std::max(place_at, one_by_one(out, slots, left, batches, batch_ns, now));
            const auto holds = [&](const RunningBatch& batch) {
                return batch.reserve >= left && batch.overdue_at > now;
            };
            const std::uint32_t all = slots > left ? slots - left : 1;
            const auto taken = std::count_if(out.begin(), out.end(), holds);
            places = std::min(places, all - std::min(all, static_cast<std::uint32_t>(taken)));
        };
        ask(reserve);
        for (const RunningBatch& batch : out) {
            if (batch.reserve > 0 && batch.reserve < reserve) ask(batch.reserve);
        }
    }
    std::uint32_t places;
    Nanos place_at;
};

void check_random(std::mt19937& random) {
    constexpr Nanos kBatchNs = 30;
    const auto below = [&](std::uint32_t end) {
        return static_cast<std::uint32_t>(random() % end);
    };
    for (int world = 0; world < 200; ++world) {
        const std::uint32_t slots = 1 + below(20);
        const std::uint32_t reserves = 1 + below(slots + 2);
        Backlog backlog;
        backlog.set_slots(slots);
        std::vector<RunningBatch> out;
        Nanos now = 0;
        for (int step = 0; step < 100; ++step, now += below(20)) {
            if (below(2) == 0 && !out.empty()) {
                const auto ended = out.begin() + below(static_cast<std::uint32_t>(out.size()));
                backlog.end(*ended);
                out.erase(ended);
            } else {
                const Nanos end = now + below(100);
                out.push_back({end, below(reserves), end + below(100)});
                backlog.start(out.back());
            }
            const std::uint32_t reserve = 1 + below(reserves);
            const std::uint32_t batches = below(60);
            const Expected expected(out, slots, reserve, batches, kBatchNs, now);
            const std::size_t allocated = allocations;
            must(backlog.place_at(reserve, batches, kBatchNs, now) == expected.place_at,
                 "a place is free once those before have one");
            must(backlog.places(reserve, now) == expected.places, "places are those not taken");
            must((reserve >= backlog.barred_from(now)) == (expected.places == 0),
                 "barred is what has no place");
            must(allocations == allocated, "to ask takes no memory");
        }
    }
}

}  // namespace

int main(int, char** argv) {
    std::mt19937 random(static_cast<unsigned>(std::atoi(argv[1])));
    check_random(random);
    check_levels();
    check_order();
    check_rare();
    check_many();
    check_nested();
    check_overdue();
    check_twins();
    return 0;
}
