#include "http2/grpc_framing.h"

#include <algorithm>
#include <cstring>

namespace infersched::http2 {

namespace {

void advance(std::size_t size, Span* bytes, std::size_t* frame_left) {
    *bytes = {bytes->data + size, bytes->size - size};
    *frame_left -= size;
}

}  // namespace

void write_prefix(std::uint8_t* prefix, std::size_t length) {
    prefix[0] = 0;
    prefix[1] = static_cast<std::uint8_t>(length >> 24);
    prefix[2] = static_cast<std::uint8_t>(length >> 16);
    prefix[3] = static_cast<std::uint8_t>(length >> 8);
    prefix[4] = static_cast<std::uint8_t>(length);
}

FramingError MessageAssembler::finish_prefix(std::size_t bytes_max) {
    length_ = static_cast<std::size_t>(prefix_[1]) << 24 |
              static_cast<std::size_t>(prefix_[2]) << 16 |
              static_cast<std::size_t>(prefix_[3]) << 8 | prefix_[4];
    if (prefix_[0] == 1) return FramingError::kCompressed;
    if (prefix_[0] != 0) return FramingError::kBadFlag;
    if (length_ > bytes_max) return FramingError::kTooLarge;
    message_ = BufferRef::make();
    return FramingError::kNone;
}

// The memory taken follows what has arrived: the rest of this frame (bounded by the frame size we
// announced), then doubling.
bool MessageAssembler::make_room(std::size_t incoming, std::size_t frame_left) {
    Buffer& message = *message_;
    const std::size_t needed = message.size() + incoming;
    if (needed <= message.capacity()) return true;
    const std::size_t wanted =
        message.capacity() == 0 ? std::max(frame_left, kFirstReserveBytes) : message.capacity() * 2;
    return message.reserve(std::max(std::min(wanted, length_), needed));
}

FramingError MessageAssembler::feed(Span* bytes, std::size_t* frame_left, std::size_t bytes_max) {
    if (prefix_size_ < kPrefixBytes) {
        const std::size_t size = std::min(bytes->size, kPrefixBytes - prefix_size_);
        std::memcpy(prefix_ + prefix_size_, bytes->data, size);
        prefix_size_ += static_cast<std::uint8_t>(size);
        advance(size, bytes, frame_left);
        if (prefix_size_ < kPrefixBytes) return FramingError::kNone;
        const FramingError error = finish_prefix(bytes_max);
        if (error != FramingError::kNone) return error;
    }
    const std::size_t size = std::min(bytes->size, length_ - filled());
    if (size == 0) return FramingError::kNone;
    if (!make_room(size, *frame_left) || !message_->append(bytes->data, size))
        return FramingError::kOutOfMemory;
    advance(size, bytes, frame_left);
    return FramingError::kNone;
}

BufferRef MessageAssembler::take() {
    BufferRef message = std::move(message_);
    clear();
    return message;
}

void MessageAssembler::clear() {
    message_ = BufferRef();
    prefix_size_ = 0;
    length_ = 0;
}

}  // namespace infersched::http2
