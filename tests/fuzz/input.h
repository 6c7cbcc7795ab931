// What the fuzzer gives, taken from both ends: bytes of the wire from the front, choices from the
// back, so that a change of a choice does not move the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/bytes.h"
#include "base/time.h"

// A broken promise ends the process, which is a finding.
#define EXPECT(condition)                                                                 \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                 \
        }                                                                                 \
    } while (false)

namespace infersched::fuzz {

class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : front_(data), size_(size) {}

    // A number from 0 to `below` - 1; 0 when nothing is left.
    std::uint32_t choice(std::uint32_t below) {
        if (size_ == 0 || below < 2) return 0;
        return front_[--size_] % below;
    }
    bool flag() { return choice(2) != 0; }
    std::size_t left() const { return size_; }
    Span rest() const { return {front_, size_}; }
    // At most `count` bytes.
    Span bytes(std::size_t count) {
        const Span taken = {front_, count < size_ ? count : size_};
        front_ += taken.size;
        size_ -= taken.size;
        return taken;
    }

  private:
    const std::uint8_t* front_;
    std::size_t size_;
};

// A buffer exactly as large as the bytes, so that a read past their end is seen.
inline BufferRef exact_copy(Span bytes) {
    BufferRef buffer = BufferRef::make();
    EXPECT(buffer->reserve(bytes.size) && buffer->append(bytes.data, bytes.size));
    return buffer;
}

inline BufferRef joined(const Pieces& pieces) {
    BufferRef buffer = BufferRef::make();
    EXPECT(buffer->reserve(pieces.size()));
    for (std::size_t i = 0; i < pieces.count(); ++i) {
        EXPECT(buffer->append(pieces.piece(i).data, pieces.piece(i).size));
    }
    EXPECT(buffer->size() == pieces.size());
    return buffer;
}

// An input that takes a processor long is a finding, however little the clock of a busy machine
// says.
class CpuBound {
  public:
    explicit CpuBound(std::size_t input_bytes)
        : until_(std::clock() +
                 CLOCKS_PER_SEC * static_cast<std::clock_t>(1 + input_bytes / kBytesPerSecond)) {}
    ~CpuBound() { EXPECT(std::clock() <= until_); }
    CpuBound(const CpuBound&) = delete;
    CpuBound& operator=(const CpuBound&) = delete;

  private:
    static constexpr std::size_t kBytesPerSecond = 4'096;
    const std::clock_t until_;
};

}  // namespace infersched::fuzz
