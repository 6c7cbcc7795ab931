// Writes the protobuf wire format into memory whose size was computed before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/bytes.h"

namespace infersched::kserve {

inline std::size_t varint_bytes(std::uint64_t value) {
    const int bits = 64 - __builtin_clzll(value | 1);
    return static_cast<std::size_t>(bits * 9 + 64) / 64;
}

inline std::uint8_t* put_varint(std::uint8_t* at, std::uint64_t value) {
    while (value >= 0x80) {
        *at++ = static_cast<std::uint8_t>(value) | 0x80;
        value >>= 7;
    }
    *at++ = static_cast<std::uint8_t>(value);
    return at;
}

inline std::uint8_t* put_bytes(std::uint8_t* at, std::string_view bytes) {
    if (!bytes.empty()) std::memcpy(at, bytes.data(), bytes.size());
    return at + bytes.size();
}

// A field whose tag fits one byte: every field of the messages we write.
inline std::uint8_t* put_field(std::uint8_t* at, std::uint8_t tag, std::string_view bytes) {
    *at++ = tag;
    return put_bytes(put_varint(at, bytes.size()), bytes);
}

inline std::size_t field_bytes(std::size_t size) { return 1 + varint_bytes(size) + size; }

}  // namespace infersched::kserve
