// A fast hash of short byte strings, after wyhash (Wang Yi, public domain): 16 bytes a
// multiplication. Who does not know the seed cannot choose strings that collide.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/bytes.h"

namespace infersched::kserve {

inline std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

inline std::uint64_t hash_bytes(Span bytes, std::uint64_t seed) {
    constexpr std::uint64_t kA = 0xa0761d6478bd642full;
    constexpr std::uint64_t kB = 0xe7037ed1a0b428dbull;
    std::uint64_t state = seed ^ kA;
    // A word that is equal to this makes the state forget what came before it.
    const std::uint64_t mask = fold_multiply(state, kB);
    const std::uint8_t* at = bytes.data;
    std::size_t left = bytes.size;
    std::uint64_t words[2];
    for (; left >= 16; at += 16, left -= 16) {
        std::memcpy(words, at, 16);
        state = fold_multiply(words[0] ^ mask, words[1] ^ state);
    }
    words[0] = words[1] = 0;
    if (left != 0) std::memcpy(words, at, left);
    state = fold_multiply(words[0] ^ mask, words[1] ^ state);
    return fold_multiply(state ^ bytes.size, kB);
}

}  // namespace infersched::kserve
