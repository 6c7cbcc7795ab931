// Random operations on SlotMap, StreamMap and StableArray beside the standard containers; built and
// run by test_base_maps.py. Usage: base_maps SEED. Exit status 1 and a line on stderr when they
// differ.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/slot_map.h"
#include "base/stable_array.h"
#include "base/stream_map.h"

namespace {

constexpr int kSteps = 60'000;

void require(bool holds, const char* what, int step) {
    if (holds) return;
    std::fprintf(stderr, "step %d: %s\n", step, what);
    std::exit(1);
}

template <typename Map>
typename Map::iterator any_of(Map& map, std::mt19937& random) {
    return std::next(map.begin(), static_cast<long>(random() % map.size()));
}

void check_stream_map(std::mt19937& random) {
    infersched::StreamMap map;
    std::map<std::int32_t, std::uint64_t> twin;
    std::int32_t next_stream = 1;
    for (int step = 0; step < kSteps; ++step) {
        // Phases of growing and of shrinking; ids near each other, far apart, and the largest.
        const bool growing = step / 2000 % 2 == 0;
        if (twin.empty() || random() % 8 < (growing ? 5 : 3)) {
            next_stream += 2 * static_cast<std::int32_t>(1 + (random() % 50 == 0) * random() % 999);
            const std::int32_t stream = random() % 500 == 0 ? 0x7fffffff : next_stream;
            if (twin.count(stream) != 0) continue;
            const std::uint64_t value = 1 + random();
            map.insert(stream, value);
            twin[stream] = value;
        } else {
            const auto victim = any_of(twin, random);
            require(map.take(victim->first) == victim->second, "take gives what was there", step);
            require(map.take(victim->first) == 0, "it is there once", step);
            twin.erase(victim);
        }
        require(map.size() == twin.size(), "sizes agree", step);
        require(map.find(next_stream + 2) == 0, "an id that never was is absent", step);
        if (step % 64 != 0) continue;
        for (const auto& [stream, value] : twin)
            require(map.find(stream) == value, "every entry is found", step);
        std::size_t seen = 0;
        map.each([&](std::int32_t stream, std::uint64_t value) {
            require(twin.count(stream) == 1 && twin[stream] == value, "each visits entries", step);
            ++seen;
        });
        require(seen == twin.size(), "each visits every entry", step);
    }
}

void check_slot_map(std::mt19937& random) {
    infersched::SlotMap<std::string> map;
    std::map<std::uint64_t, std::string> twin;
    std::map<std::uint64_t, std::string*> addresses;
    std::vector<std::uint64_t> stale = {0};
    for (int step = 0; step < kSteps; ++step) {
        if (twin.empty() || random() % 8 < (step / 2000 % 2 == 0 ? 5u : 3u)) {
            const std::uint64_t handle = map.emplace();
            require(handle != 0 && twin.count(handle) == 0, "a handle is new", step);
            require(map.find(handle)->empty(), "a new object is fresh", step);
            const std::string text = std::to_string(random()) + " longer than a small string";
            *map.find(handle) = twin[handle] = text;
            addresses[handle] = map.find(handle);
        } else {
            const std::uint64_t handle = any_of(twin, random)->first;
            map.erase(handle);
            map.erase(handle);
            twin.erase(handle);
            addresses.erase(handle);
            stale.push_back(handle);
        }
        require(map.size() == twin.size(), "sizes agree", step);
        require(map.find(stale[random() % stale.size()]) == nullptr, "stale finds nothing", step);
        if (step % 64 != 0) continue;
        for (const auto& [handle, text] : twin) {
            require(map.find(handle) == addresses[handle], "addresses stay", step);
            require(*map.find(handle) == text, "values stay", step);
        }
    }
}

void check_stable_array(std::mt19937& random) {
    infersched::StableArray<std::string> array;
    std::vector<std::string> twin;
    std::vector<const std::string*> addresses;
    for (int step = 0; step < kSteps; ++step) {
        if (random() % 500 == 0) {
            const std::size_t size = random() % (2 * twin.size() + 20);
            array.resize(static_cast<std::uint32_t>(size));
            twin.resize(size);
            // What was taken out may come back where it was.
            for (std::size_t i = addresses.size(); i < size; ++i) {
                addresses.push_back(&array[static_cast<std::uint32_t>(i)]);
            }
        } else {
            const std::string text = std::to_string(random()) + " longer than a small string";
            std::string& added = array.push_back();
            require(added.empty(), "an added element is fresh", step);
            added = text;
            twin.push_back(text);
            if (addresses.size() < twin.size()) addresses.push_back(&added);
        }
        require(array.size() == twin.size(), "sizes agree", step);
        if (step % 64 != 0) continue;
        std::size_t seen = 0;
        array.each([&](const std::string& text) {
            require(text == twin[seen], "elements stay", step);
            require(&text == addresses[seen++], "addresses stay", step);
        });
        require(seen == twin.size(), "each visits every element", step);
    }
}

}  // namespace

int main(int argc, char** argv) {
    std::mt19937 random(static_cast<unsigned>(argc > 1 ? std::atoi(argv[1]) : 1));
    check_stream_map(random);
    check_slot_map(random);
    check_stable_array(random);
    return 0;
}
