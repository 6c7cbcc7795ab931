// A cursor whose levels come and go.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "engine/queues/priority_cursor.h"

using namespace infersched;
using namespace infersched::engine;

namespace {

constexpr Nanos kWindowNs = 150 * kMillisecond;
constexpr Nanos kBudgetNs = 20 * kMillisecond;
constexpr double kAttainment = 0.99;
constexpr int kRounds = 100;  // of a window

struct Offered {
    int by_level[3];  // a round
};

// Windows in which the top level misses the more the more of the lower ones are let in: `missed` of
// it where all are, nothing where five sixths are. The part of level 2 that is let in.
double run(PriorityCursor& cursor, const Offered& offered, int windows, double missed, Nanos& now) {
    double misses = 0;
    double offers = 0;
    double second = 0;
    double lower = 1;
    for (int window = 0; window < windows; ++window) {
        double let_in = 0;
        double lower_offers = 0;
        for (int round = 0; round < kRounds; ++round, now += kWindowNs / kRounds) {
            for (std::uint32_t level = 1; level <= 3; ++level) {
                for (int i = 0; i < offered.by_level[level - 1]; ++i) {
                    lower_offers += level > 1;
                    offers += level == 2;
                    if (!cursor.offer(level, now, kBudgetNs, kAttainment)) continue;
                    cursor.let_in();
                    let_in += level > 1;
                    second += level == 2;
                    misses += level == 1 ? missed * std::max(6 * lower - 5, 0.0) : 0;
                    cursor.count(level, level > 1 || misses < 1);
                    if (misses >= 1) misses -= 1;
                }
            }
        }
        lower = lower_offers == 0 ? 0 : let_in / lower_offers;
    }
    return offers == 0 ? 0 : second / offers;
}

}  // namespace

int main() {
    PriorityCursor cursor;
    Nanos now = 0;
    // A part of the lower level is shed, then there is so much of the top one that nothing is left
    // for it; level 2 has no requests.
    run(cursor, {{2, 0, 8}}, 200, 0.5, now);
    run(cursor, {{18, 0, 1}}, 1, 0, now);
    const double part = run(cursor, {{2, 8, 0}}, 200, 0.5, now);
    std::fprintf(stderr, "%.3f of level 2 is let in\n", part);
    return part < 0.96 ? 0 : 1;
}
