// What is planned for given demands, and how many batches may run for given ones that do.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "engine/admission/backlog.h"
#include "engine/batching/reserve.h"

using namespace infersched;
using namespace infersched::engine;

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
    for (Nanos end = 1; end <= 3; ++end) backlog.start(end * kSecond, 1);
    must(backlog.places(1, 0) == 0, "three leave one");
    must(backlog.places(3, 0) == 0, "what leaves three leaves that one as well");
    must(backlog.place_at(3, 0, kSecond, 0) == kSecond, "there is a place once one of them ends");
    backlog.end(kSecond, 1);
    must(backlog.places(3, 0) == 1, "then it has its own place");
}

void check_overdue() {
    Backlog backlog;
    backlog.set_slots(2);
    backlog.start(kSecond, 1, 2 * kSecond);
    must(backlog.places(1, kSecond) == 0, "a batch that is a bit late holds its place");
    must(backlog.places(1, 2 * kSecond) == 1, "one that hangs does not");
}

}  // namespace

int main() {
    check_levels();
    check_rare();
    check_many();
    check_nested();
    check_overdue();
    return 0;
}
