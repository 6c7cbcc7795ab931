// proto3 parsers refuse strings that are not UTF-8; so must we, or one such string fails a whole
// batch.
#pragma once

#include "base/bytes.h"

namespace infersched::kserve {

bool is_utf8_beyond_ascii(Span bytes);

// Shortest forms only, no surrogates, nothing above U+10FFFF.
inline bool is_utf8(Span bytes) {
    std::size_t i = 0;
    std::uint64_t high_bits = 0;
    for (; i + 8 <= bytes.size; i += 8) {
        std::uint64_t word;
        std::memcpy(&word, bytes.data + i, 8);
        high_bits |= word;
    }
    for (; i < bytes.size; ++i) high_bits |= bytes.data[i];
    // The bytes of the tail were or-ed into the lowest lane, so one mask covers all lanes.
    return (high_bits & 0x8080808080808080u) == 0 || is_utf8_beyond_ascii(bytes);
}

}  // namespace infersched::kserve
