// Puts length-prefixed gRPC messages together from DATA, each in one buffer; compressed ones are
// inflated as they arrive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/status.h"
#include "http2/compression.h"

namespace infersched::http2 {

inline constexpr std::size_t kPrefixBytes = 5;  // flag, four bytes of length
// Until data arrive, memory is taken for this much of a claimed length at most.
inline constexpr std::size_t kFirstReserveBytes = 16u << 10;
// What is left of a frame and a message is read into the message itself, in reads of so much.
inline constexpr std::size_t kDirectBytesMin = 32u << 10;
inline constexpr std::size_t kDirectBytesMax = 256u << 10;
// A shared block, taken for a whole message, waits until so much of the message has arrived.
inline constexpr std::size_t kShareAfterBytesMin = 64u << 10;
inline constexpr std::size_t kShareAfterBytesMax = 1u << 20;

enum class FramingError : std::uint8_t {
    kNone,
    kTooLarge,          // the prefix claims more than `bytes_max`
    kInflatesTooLarge,  // the message inflates to more than `bytes_max`
    kCompressed,        // compressed flag 1 without a known encoding
    kCorrupt,           // what is flagged as compressed is not
    kBadFlag,           // a flag that is neither 0 nor 1
    kSecondMessage,     // bytes after the end of a unary message
    kOutOfMemory,
};

struct FramingLimits {
    std::size_t bytes_max;          // of a message, inflated
    std::uint64_t room = SIZE_MAX;  // for what a compressed one inflates to from here on
};

class MessageAssembler {
  public:
    // Takes the part of `*bytes` that belongs to this message and moves `*bytes` on behind it.
    // `*frame_left` (>= bytes->size) is what is left of the DATA frame, moved on alike. After an
    // error the assembler is to be cleared.
    FramingError feed(Span* bytes, std::size_t* frame_left, const FramingLimits& limits);

    // Where the next bytes of the frame, of which `frame_left` are to come, may be written before
    // they are fed; empty where that does not pay. Valid until anything else is called here.
    Space space(std::size_t frame_left);

    bool started() const { return prefix_size_ > 0; }
    bool complete() const { return prefix_size_ == kPrefixBytes && received_ == length_; }
    // The length the prefix claims, 0 until it is known.
    std::size_t length() const { return length_; }
    // Memory held on account of compression, beyond what was received.
    std::uint64_t inflated_bytes() const;
    // Of messages with the compressed flag, from grpc-encoding.
    void set_encoding(Compression encoding) { encoding_ = encoding; }
    Compression encoding() const { return encoding_; }
    // See ServerConfig::shared_alignment.
    void set_shared(std::size_t (*alignment)(Span head)) { shared_alignment_ = alignment; }
    BufferRef take();
    // Forgets the message, not the encoding.
    void clear();

  private:
    FramingError finish_prefix(std::size_t bytes_max);
    FramingError store(Span bytes, std::size_t frame_left);
    FramingError inflate(Span bytes, const FramingLimits& limits);
    // Bytes that must have arrived before the message moves to a shared block; 0: it does not, or
    // has been tried.
    std::size_t share_after() const;
    void share(Span arrived);
    bool make_room(Span incoming, std::size_t size, std::size_t frame_left);

    std::size_t (*shared_alignment_)(Span head) = nullptr;
    std::uint8_t prefix_[kPrefixBytes] = {};
    std::uint8_t prefix_size_ = 0;
    Compression encoding_ = Compression::kNone;
    bool compressed_ = false;
    std::size_t length_ = 0;
    std::size_t received_ = 0;  // of it
    bool share_tried_ = false;
    BufferRef message_;
    std::unique_ptr<Inflater> inflater_;
};

// What a peer that sent bytes with `error` in them is told; `length` is the assembler's.
Status framing_status(FramingError error, const MessageAssembler& in, std::size_t bytes_max);

void write_prefix(std::uint8_t* prefix, std::size_t length, bool compressed);

}  // namespace infersched::http2
