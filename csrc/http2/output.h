// What leaves a session: small pieces are gathered into one buffer a pull, larger ones referred to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "http2/grpc_framing.h"

namespace infersched::http2 {

inline constexpr std::size_t kGatherBytesMax = 16u << 10;

// Collects one pull.
class Output {
  public:
    void begin(std::size_t bytes_max, std::vector<Slice>* slices);
    void write(Span bytes);
    void refer(const BufferRef& owner, Span bytes);
    // Hands the slices over.
    void finish();

    bool full() const { return written_ >= bytes_max_; }

  private:
    // A run of the gather buffer; its address is known when the buffer no longer grows.
    struct Run {
        std::size_t slice;
        std::size_t offset;
        std::size_t size;
    };
    void close_run();

    std::vector<Slice>* slices_ = nullptr;
    std::size_t bytes_max_ = 0;
    std::size_t written_ = 0;
    std::size_t run_offset_ = 0;
    std::size_t expected_bytes_ = 1024;  // what the last pulls gathered
    BufferRef gather_;
    std::vector<Run> runs_;
};

// The bytes of one stream that wait to be sent: one gRPC message with its prefix (unary), or any
// number of messages or relayed pieces.
class OutBody {
  public:
    void set_message(Pieces&& message, bool compressed);
    void append(const BufferRef& owner, Span bytes);
    void append_message(const Pieces& message, bool compressed);
    // Moves the next `size` (<= remaining) bytes to `output`.
    void send(std::size_t size, Output* output);
    std::size_t remaining() const { return remaining_; }
    void clear();

  private:
    void send_message(std::size_t size, Output* output);
    void send_slices(std::size_t size, Output* output);
    std::uint8_t* extend_run(std::size_t size);

    std::size_t remaining_ = 0;
    std::size_t index_ = 0;   // of the first piece that is not sent whole
    std::size_t offset_ = 0;  // in that piece
    std::uint8_t prefix_[kPrefixBytes] = {};
    std::uint8_t prefix_sent_ = kPrefixBytes;
    Pieces message_;
    std::vector<Slice> slices_;
    BufferRef run_;  // prefixes and short messages, referred to by slices_
};

}  // namespace infersched::http2
