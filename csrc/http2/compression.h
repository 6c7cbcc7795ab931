// gRPC's "gzip" and "deflate" (zlib's format, RFC 1950): messages deflated whole, inflated as they
// arrive.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <memory>
#include <string_view>

#include "base/bytes.h"
#include "http2/session.h"

namespace infersched::http2 {

// Names of grpc-encoding.
inline constexpr std::string_view kAcceptedEncodings = "identity,deflate,gzip";
std::string_view encoding_name(Compression compression);
// False: an encoding we do not know.
bool parse_encoding(std::string_view name, Compression* compression);
// Whether a grpc-accept-encoding list has `compression`.
bool accepts_encoding(std::string_view list, Compression compression);

// Memory zlib takes to inflate one message.
inline constexpr std::size_t kInflaterBytes = 48u << 10;
// Longer messages are sent as they are: one answer must not hold up all others for longer than it
// takes to deflate this much (15 to 80 ms).
inline constexpr std::size_t kDeflatedBytesMax = 4u << 20;

// Replaces `*message` by its compressed form. False: that would not be shorter, nothing changed.
bool deflate_message(Compression compression, Pieces* message);

// Inflates one message.
class Inflater {
  public:
    enum class Result : std::uint8_t { kOk, kCorrupt, kTooLarge, kOutOfMemory };

    // Null: no memory. Used ones are kept for reuse by the thread.
    static std::unique_ptr<Inflater> take(Compression compression);
    static void give_back(std::unique_ptr<Inflater> inflater);

    Inflater() = default;
    ~Inflater();
    Inflater(const Inflater&) = delete;
    Inflater& operator=(const Inflater&) = delete;

    // Appends to `*out`, whose size does not exceed `bytes_max` with it, what `bytes` hold.
    Result feed(Span bytes, Buffer* out, std::size_t bytes_max);
    // The compressed message is complete.
    bool ended() const { return ended_; }

  private:
    z_stream stream_{};
    bool ended_ = false;
};

}  // namespace infersched::http2
