// Random use of shared blocks, alone and below Buffer; built and run by test_shared_blocks.py.
// Usage: shared_blocks SEED. Exit status 1 and a line on stderr when something does not hold.
#include "base/shared_blocks.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "base/bytes.h"

namespace {

using infersched::Block;
using infersched::SharedBlocks;

constexpr int kSteps = 4'000;
constexpr std::size_t kSegmentBytes = 64u << 20;
constexpr std::size_t kBlockBytesMax = kSegmentBytes / SharedBlocks::kPartOfOneBlock;

void require(bool holds, const char* what, int step = -1) {
    if (holds) return;
    std::fprintf(stderr, "step %d: %s\n", step, what);
    std::exit(1);
}

struct Segment {
    int fd;
    std::uint8_t* memory;
};

Segment make_segment(std::size_t file_bytes) {
    const int fd = memfd_create("segment", MFD_CLOEXEC);
    require(fd >= 0 && ftruncate(fd, static_cast<off_t>(file_bytes)) == 0, "no file");
    void* memory = mmap(nullptr, kSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    require(memory != MAP_FAILED, "no mapping");
    return {fd, static_cast<std::uint8_t*>(memory)};
}

// Blocks never overlap, lie in the segment and can be written; what is free is joined again.
void check_places(std::mt19937& random) {
    const Segment segment = make_segment(kSegmentBytes);
    SharedBlocks blocks;
    require(blocks.take(1).data == nullptr, "a block without memory");
    blocks.adopt(segment.memory, kSegmentBytes, segment.fd);
    std::map<std::uint64_t, Block> held;
    std::size_t used = 0;
    for (int step = 0; step < kSteps; ++step) {
        if (held.empty() || (random() % 2 == 0 && held.size() < 60)) {
            const std::size_t size = 1 + random() % kBlockBytesMax;
            const Block block = blocks.take(size);
            if (block.data == nullptr) continue;
            require(block.capacity >= size, "less than was asked for", step);
            auto* const data = static_cast<std::uint8_t*>(block.data);
            require(blocks.contains(data), "outside of the segment", step);
            const std::uint64_t offset = blocks.offset_of(data);
            require(offset + block.capacity <= kSegmentBytes, "beyond the segment", step);
            const auto next = held.lower_bound(offset);
            require(next == held.end() || offset + block.capacity <= next->first, "overlap", step);
            if (next != held.begin()) {
                const auto before = std::prev(next);
                require(before->first + before->second.capacity <= offset, "overlap", step);
            }
            data[0] = data[block.capacity - 1] = 1;
            held[offset] = block;
            used += block.capacity;
        } else {
            auto chosen = held.begin();
            std::advance(chosen, random() % held.size());
            used -= chosen->second.capacity;
            blocks.give_back(chosen->second);
            held.erase(chosen);
        }
        require(blocks.used_bytes() == used, "the sum is wrong", step);
        require(blocks.backed_bytes() <= kSegmentBytes, "more than the segment", step);
    }
    for (const auto& [offset, block] : held) blocks.give_back(block);
    for (std::size_t i = 0; i < SharedBlocks::kPartOfOneBlock; ++i)
        require(blocks.take(kBlockBytesMax).data != nullptr, "free memory was not joined");
    require(blocks.take(1).data == nullptr, "the bound does not hold");
}

void check_bound() {
    const Segment segment = make_segment(kSegmentBytes);
    SharedBlocks blocks;
    blocks.adopt(segment.memory, kSegmentBytes, segment.fd);
    require(blocks.backed_bytes() == 0, "pages before they are used");
    require(blocks.take(kBlockBytesMax + 1).data == nullptr, "one block takes too much");
    require(blocks.take(0).data == nullptr, "a block of nothing");
    require(blocks.take(kBlockBytesMax).data != nullptr, "one block may take its part");
    require(blocks.backed_bytes() < kSegmentBytes / 4, "pages that nobody uses");
}

// A system that has no more pages: blocks end where they end, and nothing faults.
void check_exhaustion() {
    const Segment segment = make_segment(kSegmentBytes / 2);
    const rlimit limit{kSegmentBytes / 2, kSegmentBytes / 2};
    std::signal(SIGXFSZ, SIG_IGN);
    require(setrlimit(RLIMIT_FSIZE, &limit) == 0, "no limit");
    SharedBlocks blocks;
    blocks.adopt(segment.memory, kSegmentBytes, segment.fd);
    std::vector<Block> held;
    for (int round = 0; round < 3; ++round) {
        for (;;) {
            const Block block = blocks.take(3u << 20);
            if (block.data == nullptr) break;
            std::memset(block.data, 1, block.capacity);
            held.push_back(block);
        }
        require(held.size() == kSegmentBytes / 2 / (3u << 20), "not all that is there", round);
        for (const Block& block : held) blocks.give_back(block);
        held.clear();
    }
    require(blocks.backed_bytes() <= kSegmentBytes / 2, "pages that are not there");
}

struct Held {
    infersched::BufferRef buffer;
    std::vector<std::uint8_t> bytes;
};

// Buffers that move in and out of shared blocks keep their bytes.
void check_buffers(std::mt19937& random) {
    const Segment segment = make_segment(kSegmentBytes);
    infersched::shared_blocks().adopt(segment.memory, kSegmentBytes, segment.fd);
    std::vector<Held> held;
    for (int step = 0; step < kSteps; ++step) {
        if (held.empty() || (random() % 4 == 0 && held.size() < 40)) {
            held.push_back({infersched::BufferRef::make(), {}});
        }
        const std::size_t index = random() % held.size();
        Held& one = held[index];
        const unsigned choice = random() % 8;
        if (choice == 0) {
            held.erase(held.begin() + static_cast<std::ptrdiff_t>(index));
            continue;
        }
        if (choice < 3) {
            const std::size_t lead = random() % 64;
            if (one.buffer->share(one.bytes.size() + random() % 1'000'000, lead)) {
                const std::uint64_t offset =
                    infersched::shared_blocks().offset_of(one.buffer->data());
                require(offset % SharedBlocks::kStepBytes == lead, "another lead", step);
            }
        } else if (one.bytes.size() < 2'000'000) {
            const std::vector<std::uint8_t> more(random() % 300'000,
                                                 static_cast<std::uint8_t>(random()));
            require(one.buffer->append(more.data(), more.size()), "no memory", step);
            one.bytes.insert(one.bytes.end(), more.begin(), more.end());
        }
        require(one.buffer->size() == one.bytes.size(), "another size", step);
        require(one.bytes.empty() ||
                    std::memcmp(one.buffer->data(), one.bytes.data(), one.bytes.size()) == 0,
                "bytes have changed", step);
    }
    held.clear();
    require(infersched::shared_blocks().used_bytes() == 0, "a block was lost");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::mt19937 random(static_cast<unsigned>(std::atoi(argv[1])));
    check_places(random);
    check_bound();
    check_buffers(random);
    check_exhaustion();
    return 0;
}
