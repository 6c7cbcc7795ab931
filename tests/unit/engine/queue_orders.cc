// Random operations on QueueOrder beside std::set; built and run by test_queue_orders.py.
// Usage: queue_orders SEED. Exit status 1 and a line on stderr when they differ.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <set>
#include <vector>

#include "engine/queues/queue_order.h"

namespace {

using infersched::engine::QueueKey;
using infersched::engine::QueueNodes;
using infersched::engine::QueueOrder;
using Twin = std::set<QueueKey>;

constexpr std::uint32_t kLevels[] = {0, 2, 3, 126, 127, 300, 0x8000'0002, 0xffff'ffff};
constexpr int kSteps = 120'000;
constexpr int kPhase = 12'000;

void require(bool holds, const char* what, int step) {
    if (holds) return;
    std::fprintf(stderr, "step %d: %s\n", step, what);
    std::exit(1);
}

bool same(const QueueKey& one, const QueueKey& other) {
    return one.level == other.level && one.deadline == other.deadline &&
           one.sequence == other.sequence && one.slot == other.slot;
}

QueueKey random_key(std::mt19937_64& random, int phase, std::uint64_t sequence) {
    QueueKey key;
    key.sequence = sequence;
    key.slot = static_cast<std::uint32_t>(random());
    switch (phase % 4) {
        case 0:  // anywhere, with the extremes
            key.level = kLevels[random() % 8];
            key.deadline = static_cast<std::int64_t>(random());
            if (random() % 8 == 0) key.deadline = infersched::kNever;
            break;
        case 1:  // mostly at the end
            key.deadline = static_cast<std::int64_t>(sequence * 10 + random() % 200);
            break;
        case 2:  // at the front
            key.deadline = -static_cast<std::int64_t>(sequence);
            break;
        default:  // equal deadlines, out of the order of arrival
            key.deadline = static_cast<std::int64_t>(random() % 5);
            key.sequence = sequence << 16 | random() % 0x10000;
            if (random() % 2 == 0) key.sequence = (1u << 20) - key.sequence % (1u << 19);
    }
    return key;
}

// The ways in which a queue loses requests: from its front, by cancelling, in a row.
QueueKey victim_of(const Twin& twin, std::mt19937_64& random, int phase) {
    if (phase % 3 == 0) return *twin.begin();
    auto victim = twin.lower_bound(random_key(random, phase, random() % 100'000));
    if (victim == twin.end()) --victim;
    return *victim;
}

void compare(const QueueOrder& order, const Twin& twin, int step) {
    require(order.consistent(), "the nodes are in order", step);
    auto mine = order.begin();
    for (const QueueKey& key : twin) {
        require(same(*mine, key), "both go forward alike", step);
        ++mine;
    }
    require(mine == order.end(), "both end together", step);
    for (auto other = twin.rbegin(); other != twin.rend(); ++other) {
        require(same(*--mine, *other), "both go backward alike", step);
    }
}

void look(const QueueOrder& order, const Twin& twin, const QueueKey& key, int step) {
    require(order.size() == twin.size() && order.empty() == twin.empty(), "sizes agree", step);
    if (twin.empty()) return;
    require(same(order.front(), *twin.begin()) && same(order.back(), *twin.rbegin()),
            "both ends agree", step);
    const auto lower = twin.lower_bound(key);
    const auto mine = order.lower_bound(key);
    require((lower == twin.end()) == (mine == order.end()), "both find a lower bound", step);
    require(lower == twin.end() || same(*mine, *lower), "lower bounds agree", step);
    const auto upper = twin.upper_bound(key);
    const auto own = order.upper_bound(key);
    require((upper == twin.end()) == (own == order.end()), "both find an upper bound", step);
    require(upper == twin.end() || same(*own, *upper), "upper bounds agree", step);
    if (upper != twin.begin() && upper != twin.end()) {
        auto before = own;
        require(same(*--before, *std::prev(upper)), "so do those before", step);
    }
}

// A tree of full height, filled and emptied.
void check_large(std::mt19937_64& random) {
    constexpr std::uint64_t kKeys = 150'000;
    QueueNodes nodes;
    QueueOrder order;
    Twin twin;
    std::vector<QueueKey> keys;
    for (std::uint64_t i = 1; i <= kKeys; ++i) {
        keys.push_back(random_key(random, 0, i));
        order.insert(nodes, keys.back());
        twin.insert(keys.back());
    }
    compare(order, twin, 0);
    std::shuffle(keys.begin(), keys.end(), random);
    for (std::size_t i = 0; i < keys.size(); ++i) {
        order.erase(nodes, keys[i]);
        twin.erase(keys[i]);
        if (i % 29'989 == 0) compare(order, twin, static_cast<int>(i));
    }
    require(order.consistent() && order.empty(), "nothing is left", static_cast<int>(kKeys));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::mt19937_64 random(std::strtoull(argv[1], nullptr, 10));
    check_large(random);
    QueueNodes nodes;
    QueueOrder orders[2];  // that share their nodes
    Twin twins[2];
    std::uint64_t sequence = 0;
    for (int step = 0; step < kSteps; ++step) {
        const int phase = step / kPhase + static_cast<int>(random() % 16 == 0);
        const std::size_t which = random() % 16 == 0;
        QueueOrder& order = orders[which];
        Twin& twin = twins[which];
        const bool growing = step % kPhase < kPhase / 2;
        QueueKey key = random_key(random, phase, ++sequence);
        if (random() % 16 < (growing ? 13u : 2u)) {
            if (!twin.insert(key).second) continue;
            order.insert(nodes, key);
        } else if (!twin.empty()) {
            key = victim_of(twin, random, phase);
            order.erase(nodes, key);
            twin.erase(key);
        }
        look(order, twin, key, step);
        if (step % 997 == 0) compare(order, twin, step);
    }
    for (std::size_t which = 0; which < 2; ++which) {
        compare(orders[which], twins[which], kSteps);
        while (!twins[which].empty()) {
            const QueueKey key = victim_of(twins[which], random, static_cast<int>(random() % 3));
            orders[which].erase(nodes, key);
            twins[which].erase(key);
        }
        compare(orders[which], twins[which], kSteps);
    }
    return 0;
}
