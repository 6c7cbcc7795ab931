// Random use of large blocks, alone and below Buffer; built and run by test_large_blocks.py.
// Usage: large_blocks SEED. Exit status 1 and a line on stderr when something does not hold.
#include "base/large_blocks.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "base/bytes.h"

namespace {

constexpr int kSteps = 4'000;

void require(bool holds, const char* what, int step) {
    if (holds) return;
    std::fprintf(stderr, "step %d: %s\n", step, what);
    std::exit(1);
}

// Every 4 KiB and the last byte: enough to see a block that two hold.
void paint(infersched::Buffer* buffer, std::uint8_t color) {
    for (std::size_t i = 0; i < buffer->size(); i += 4096) buffer->data()[i] = color;
    buffer->data()[buffer->size() - 1] = color;
}

bool painted(const infersched::Buffer& buffer, std::uint8_t color) {
    for (std::size_t i = 0; i < buffer.size(); i += 4096)
        if (buffer.data()[i] != color) return false;
    return buffer.data()[buffer.size() - 1] == color;
}

struct Held {
    infersched::BufferRef buffer;
    std::uint8_t color;
};

void check_buffers(std::mt19937& random) {
    std::vector<Held> held;
    for (int step = 0; step < kSteps; ++step) {
        const unsigned choice = random() % 8;
        if (held.empty() || (choice < 4 && held.size() < 40)) {
            Held fresh{infersched::BufferRef::make(), static_cast<std::uint8_t>(random())};
            const std::size_t size = std::size_t{1} << (random() % 23);
            require(fresh.buffer->reserve(size, size * (1 + random() % 4)), "no memory", step);
            require(fresh.buffer->extend(size - random() % (size / 2 + 1)), "no room", step);
            paint(fresh.buffer.get(), fresh.color);
            held.push_back(fresh);
        } else if (choice < 6) {
            Held& one = held[random() % held.size()];
            const std::size_t size = one.buffer->size();
            require(one.buffer->reserve(one.buffer->capacity() + random() % 500'000 + 1),
                    "no memory", step);
            require(one.buffer->size() == size, "growing changed the size", step);
        } else {
            const std::size_t index = random() % held.size();
            require(painted(*held[index].buffer, held[index].color), "bytes have changed", step);
            held.erase(held.begin() + static_cast<std::ptrdiff_t>(index));
        }
        require(infersched::kept_block_bytes() <= infersched::kKeptBlockBytesMax,
                "more is kept than the bound", step);
    }
}

void check_bound() {
    std::vector<infersched::BufferRef> buffers;
    while (buffers.size() * infersched::kLargeBlockBytes <= infersched::kKeptBlockBytesMax) {
        buffers.push_back(infersched::BufferRef::make());
        require(buffers.back()->reserve(infersched::kLargeBlockBytes), "no memory", -1);
    }
    buffers.clear();
    require(infersched::kept_block_bytes() <= infersched::kKeptBlockBytesMax, "beyond it", -1);
    require(infersched::kept_block_bytes() >
                infersched::kKeptBlockBytesMax - infersched::kLargeBlockBytes,
            "less than the bound is kept", -1);
}

// Memory for a message is found by what it may grow to; none is taken for that.
void check_expected() {
    infersched::BufferRef buffer = infersched::BufferRef::make();
    require(buffer->reserve(8u << 20), "no memory", -1);
    const std::uint8_t* const data = buffer->data();
    buffer = infersched::BufferRef::make();
    require(buffer->reserve(1u << 20, 8u << 20), "no memory", -1);
    require(buffer->data() == data, "the kept block was not found", -1);
    infersched::BufferRef other = infersched::BufferRef::make();
    require(other->reserve(1u << 20, 8u << 20), "no memory", -1);
    require(other->capacity() == 1u << 20, "memory was taken for a claim", -1);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::mt19937 random(static_cast<unsigned>(std::atoi(argv[1])));
    check_expected();
    check_buffers(random);
    check_bound();
    return 0;
}
