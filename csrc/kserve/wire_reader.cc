#include "kserve/wire_reader.h"

namespace infersched::kserve {

namespace {
// Protobuf keeps this much of the length range for its own buffers.
constexpr std::size_t kParserSlopBytes = 16;
constexpr std::size_t kLengthMax = 0x7fffffff - kParserSlopBytes;
}  // namespace

bool WireReader::read_long_tag(std::uint32_t* tag) {
    std::uint32_t value = 0;
    for (int i = 0; i < 5; ++i) {
        if (at_ == end_) return false;
        const std::uint8_t byte = *at_++;
        value |= static_cast<std::uint32_t>(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            *tag = value;
            return value >= 8;
        }
    }
    return false;
}

bool WireReader::read_long_varint(std::uint64_t* value) {
    std::uint64_t result = 0;
    for (int i = 0; i < 10; ++i) {
        if (at_ == end_) return false;
        const std::uint8_t byte = *at_++;
        result |= static_cast<std::uint64_t>(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            *value = result;
            return true;
        }
    }
    return false;
}

bool WireReader::read_long_length(std::size_t* size) {
    std::size_t value = 0;
    for (int i = 0; i < 5; ++i) {
        if (at_ == end_) return false;
        const std::uint8_t byte = *at_++;
        if (i == 4 && byte >= 8) return false;
        value |= static_cast<std::size_t>(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            *size = value;
            return value <= kLengthMax;
        }
    }
    return false;
}

bool WireReader::skip(std::uint32_t tag, int depth) {
    switch (tag & 7) {
        case kVarint: {
            std::uint64_t ignored;
            return read_varint(&ignored);
        }
        case kFixed64: {
            std::uint64_t ignored;
            return read_fixed64(&ignored);
        }
        case kLengthDelimited: {
            Span ignored;
            return read_bytes(&ignored);
        }
        case kStartGroup:
            return skip_group(tag, depth + 1);
        case kFixed32: {
            std::uint32_t ignored;
            return read_fixed32(&ignored);
        }
        default:  // an end without its start, or a wire type that does not exist
            return false;
    }
}

bool WireReader::skip_group(std::uint32_t start_tag, int depth) {
    if (depth > kDepthMax) return false;
    std::uint32_t tag = 0;
    while (read_tag(&tag)) {
        if ((tag & 7) == kEndGroup) return tag >> 3 == start_tag >> 3;
        if (!skip(tag, depth)) return false;
    }
    return false;
}

}  // namespace infersched::kserve
