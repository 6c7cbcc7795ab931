// The text forms of gRPC's headers: timeouts, percent encoding of messages, base64 of binary
// values, and name/value pairs as nghttp2 takes them.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "base/time.h"
#include "http2/session.h"

namespace infersched::http2 {

// "1H", "250m", "99999999n" ...: up to 8 digits and a unit of H M S m u n. False: malformed.
bool parse_timeout(std::string_view text, Nanos* timeout_ns);
// The shortest form that is not shorter than `timeout_ns`; a negative one counts as zero.
std::string format_timeout(Nanos timeout_ns);

// `grpc-message`: everything outside printable ASCII, and '%', as %XX.
std::string percent_encode(std::string_view text);
// Malformed escapes stay as they are, as the gRPC specification asks.
std::string percent_decode(std::string_view text);

std::string base64_encode(std::string_view bytes);  // without padding
// With or without padding. False: malformed.
bool base64_decode(std::string_view text, std::string* bytes);

// Decimal digits only. False: malformed or out of range.
bool parse_decimal(std::string_view text, std::uint64_t* value);

// Whether a content-type is gRPC's: "application/grpc", "application/grpc+proto", "...;charset=x".
bool is_grpc_content_type(std::string_view value);

inline std::string_view view(const std::uint8_t* data, std::size_t size) {
    return {reinterpret_cast<const char*>(data), size};
}

// A header that refers to its texts: they live until nghttp2 has sent the frame.
inline nghttp2_nv static_header(std::string_view name, std::string_view value) {
    auto bytes = [](std::string_view text) {
        return const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(text.data()));
    };
    return {bytes(name), bytes(value), name.size(), value.size(),
            NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

// A header whose texts nghttp2 copies when it is submitted.
inline nghttp2_nv copied_header(std::string_view name, std::string_view value) {
    nghttp2_nv header = static_header(name, value);
    header.flags = NGHTTP2_NV_FLAG_NONE;
    return header;
}

// Headers of one connection only, which a relay neither passes on nor needs.
bool is_hop_header(std::string_view name);

// Whether a header of an answer is custom metadata: none that HTTP, gRPC or a proxy put there.
bool is_custom_metadata(std::string_view name);

// The trailers that carry `status`. A text that would make clients refuse the block, which has
// `metadata` in it as well, is cut.
Headers status_trailers(const Status& status, const AnswerMetadata* metadata = nullptr);

}  // namespace infersched::http2
