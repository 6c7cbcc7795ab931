// Puts length-prefixed gRPC messages together from DATA, each in one buffer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"

namespace infersched::http2 {

inline constexpr std::size_t kPrefixBytes = 5;  // flag, four bytes of length
// Until data arrive, memory is taken for this much of a claimed length at most.
inline constexpr std::size_t kFirstReserveBytes = 16u << 10;

enum class FramingError : std::uint8_t {
    kNone,
    kTooLarge,       // the prefix claims more than `bytes_max`
    kCompressed,     // compressed flag 1
    kBadFlag,        // a flag that is neither 0 nor 1
    kSecondMessage,  // bytes after the end of a unary message
    kOutOfMemory,
};

class MessageAssembler {
  public:
    // Takes the part of `*bytes` that belongs to this message and moves `*bytes` on behind it.
    // `*frame_left` (>= bytes->size) is what is left of the DATA frame, moved on alike. After an
    // error the assembler is to be cleared.
    FramingError feed(Span* bytes, std::size_t* frame_left, std::size_t bytes_max);

    bool started() const { return prefix_size_ > 0; }
    bool complete() const { return prefix_size_ == kPrefixBytes && filled() == length_; }
    // The length the prefix claims, 0 until it is known.
    std::size_t length() const { return length_; }
    BufferRef take();
    void clear();

  private:
    std::size_t filled() const { return message_ ? message_->size() : 0; }
    FramingError finish_prefix(std::size_t bytes_max);
    bool make_room(std::size_t incoming, std::size_t frame_left);

    std::uint8_t prefix_[kPrefixBytes] = {};
    std::uint8_t prefix_size_ = 0;
    std::size_t length_ = 0;
    BufferRef message_;
};

// Writes the prefix of an uncompressed message.
void write_prefix(std::uint8_t* prefix, std::size_t length);

}  // namespace infersched::http2
