// Reads the protobuf wire format in place.
//
// As lenient and as strict as protobuf's own C++ parser, since a request that passes here is read
// again by it: tags of at most five bytes, varints of at most ten, lengths below 2 GiB, groups
// skipped to their matching end, a nesting bound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/bytes.h"

namespace infersched::kserve {

enum WireType : std::uint32_t {
    kVarint = 0,
    kFixed64 = 1,
    kLengthDelimited = 2,
    kStartGroup = 3,
    kEndGroup = 4,
    kFixed32 = 5,
};

constexpr std::uint32_t wire_tag(std::uint32_t field, WireType type) { return field << 3 | type; }

// Nested messages and groups that protobuf's parsers follow.
inline constexpr int kDepthMax = 100;

class WireReader {
  public:
    explicit WireReader(Span bytes) : at_(bytes.data), end_(bytes.data + bytes.size) {}

    bool done() const { return at_ == end_; }
    const std::uint8_t* at() const { return at_; }

    [[nodiscard]] bool read_tag(std::uint32_t* tag) {
        if (at_ == end_) return false;
        if (*at_ < 0x80) {
            *tag = *at_++;
            return *tag >= 8;
        }
        return read_long_tag(tag);
    }

    [[nodiscard]] bool read_varint(std::uint64_t* value) {
        if (at_ == end_) return false;
        if (*at_ < 0x80) {
            *value = *at_++;
            return true;
        }
        return read_long_varint(value);
    }

    [[nodiscard]] bool read_bytes(Span* bytes) {
        std::size_t size = 0;
        if (at_ != end_ && *at_ < 0x80) {
            size = *at_++;
        } else if (!read_long_length(&size)) {
            return false;
        }
        if (size > static_cast<std::size_t>(end_ - at_)) return false;
        *bytes = {at_, size};
        at_ += size;
        return true;
    }

    [[nodiscard]] bool read_fixed64(std::uint64_t* value) {
        if (end_ - at_ < 8) return false;
        std::memcpy(value, at_, 8);
        at_ += 8;
        return true;
    }

    [[nodiscard]] bool read_fixed32(std::uint32_t* value) {
        if (end_ - at_ < 4) return false;
        std::memcpy(value, at_, 4);
        at_ += 4;
        return true;
    }

    // Steps over the value of a field that is of no interest. `depth` counts the messages and
    // groups around it.
    [[nodiscard]] bool skip(std::uint32_t tag, int depth);

  private:
    bool read_long_tag(std::uint32_t* tag);
    bool read_long_varint(std::uint64_t* value);
    bool read_long_length(std::size_t* size);
    bool skip_group(std::uint32_t start_tag, int depth);

    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

}  // namespace infersched::kserve
