#include "kserve/utf8.h"

namespace infersched::kserve {

namespace {

bool continues(std::uint8_t byte) { return (byte & 0xc0) == 0x80; }

// Bytes of the sequence at `at`, or 0 when it is none. Ranges: Unicode table 3-7.
std::size_t sequence_bytes(const std::uint8_t* at, std::size_t left) {
    const std::uint8_t lead = at[0];
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    if (lead < 0xe0) return left >= 2 && continues(at[1]) ? 2 : 0;
    if (left < 3 || !continues(at[1]) || !continues(at[2])) return 0;
    if (lead < 0xf0) {
        if (lead == 0xe0 && at[1] < 0xa0) return 0;
        if (lead == 0xed && at[1] > 0x9f) return 0;
        return 3;
    }
    if (left < 4 || !continues(at[3])) return 0;
    if (lead == 0xf0 && at[1] < 0x90) return 0;
    if (lead == 0xf4 && at[1] > 0x8f) return 0;
    return 4;
}

}  // namespace

bool is_utf8_beyond_ascii(Span bytes) {
    std::size_t i = 0;
    while (i < bytes.size) {
        const std::size_t step = sequence_bytes(bytes.data + i, bytes.size - i);
        if (step == 0) return false;
        i += step;
    }
    return true;
}

}  // namespace infersched::kserve
