#include "http2/grpc_framing.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/large_blocks.h"
#include "base/shared_blocks.h"

namespace infersched::http2 {

namespace {

void advance(std::size_t size, Span* bytes, std::size_t* frame_left) {
    *bytes = {bytes->data + size, bytes->size - size};
    *frame_left -= size;
}

// What does not compress becomes longer, an eighth at the very most.
std::size_t compressed_bytes_max(std::size_t bytes_max) { return bytes_max + bytes_max / 8 + 64; }

FramingError framing_error(Inflater::Result result) {
    switch (result) {
        case Inflater::Result::kOk:
            return FramingError::kNone;
        case Inflater::Result::kTooLarge:
            return FramingError::kInflatesTooLarge;
        case Inflater::Result::kCorrupt:
            return FramingError::kCorrupt;
        default:
            return FramingError::kOutOfMemory;
    }
}

}  // namespace

void write_prefix(std::uint8_t* prefix, std::size_t length, bool compressed) {
    prefix[0] = compressed ? 1 : 0;
    prefix[1] = static_cast<std::uint8_t>(length >> 24);
    prefix[2] = static_cast<std::uint8_t>(length >> 16);
    prefix[3] = static_cast<std::uint8_t>(length >> 8);
    prefix[4] = static_cast<std::uint8_t>(length);
}

FramingError MessageAssembler::finish_prefix(std::size_t bytes_max) {
    length_ = static_cast<std::size_t>(prefix_[1]) << 24 |
              static_cast<std::size_t>(prefix_[2]) << 16 |
              static_cast<std::size_t>(prefix_[3]) << 8 | prefix_[4];
    if (prefix_[0] > 1) return FramingError::kBadFlag;
    compressed_ = prefix_[0] == 1;
    if (compressed_ && encoding_ == Compression::kNone) return FramingError::kCompressed;
    if (length_ > (compressed_ ? compressed_bytes_max(bytes_max) : bytes_max))
        return FramingError::kTooLarge;
    message_ = BufferRef::make();
    return FramingError::kNone;
}

// What is claimed and never sent must not keep the segment from others.
std::size_t MessageAssembler::share_after() const {
    if (shared_alignment_ == nullptr || share_tried_ || compressed_ || length_ < kLargeBlockBytes)
        return 0;
    if (length_ <= kShareAfterBytesMax) return kShareAfterBytesMin;
    return std::min(length_ / 4, kShareAfterBytesMax);
}

// Once a message: where there is no room, the dispatch may find some.
void MessageAssembler::share(Span arrived) {
    share_tried_ = true;
    const std::size_t aligned = shared_alignment_(arrived);
    const std::size_t lead = (kSharedAlignBytes - aligned % kSharedAlignBytes) % kSharedAlignBytes;
    (void)message_->share(length_, lead);
}

// The memory taken follows what has arrived: the rest of this frame (bounded by the frame size we
// announced), then doubling. Of a message that goes on to a shared block it is what arrives before;
// `incoming` is what is known of the `size` bytes to come.
bool MessageAssembler::make_room(Span incoming, std::size_t size, std::size_t frame_left) {
    Buffer& message = *message_;
    const Span arrived = message.size() > 0 ? message_.span() : incoming;
    std::size_t after = share_after();
    if (after != 0 && message.size() + incoming.size >= after) {
        share(arrived);
        after = 0;
    }
    const std::size_t needed = message.size() + size;
    if (needed <= message.capacity()) return true;
    std::size_t wanted =
        message.capacity() == 0 ? std::max(frame_left, kFirstReserveBytes) : message.capacity() * 2;
    if (after != 0) wanted = std::min(wanted, after);
    const std::size_t capacity = std::max(std::min(wanted, length_), needed);
    return message.reserve(capacity, after != 0 ? capacity : length_);
}

Space MessageAssembler::space(std::size_t frame_left) {
    if (prefix_size_ < kPrefixBytes || compressed_) return {};
    std::size_t size = std::min({frame_left, length_ - received_, kDirectBytesMax});
    const std::size_t after = share_after();
    if (after > received_)  // the rest is read where it is shared
        size = std::min(size, std::max(after - received_, kDirectBytesMin));
    if (size < kDirectBytesMin || !make_room({}, size, frame_left)) return {};
    return {message_->space().data, size};
}

FramingError MessageAssembler::feed(Span* bytes, std::size_t* frame_left,
                                    const FramingLimits& limits) {
    if (prefix_size_ < kPrefixBytes) {
        const std::size_t size = std::min(bytes->size, kPrefixBytes - prefix_size_);
        std::memcpy(prefix_ + prefix_size_, bytes->data, size);
        prefix_size_ += static_cast<std::uint8_t>(size);
        advance(size, bytes, frame_left);
        if (prefix_size_ < kPrefixBytes) return FramingError::kNone;
        const FramingError error = finish_prefix(limits.bytes_max);
        if (error != FramingError::kNone) return error;
    }
    const std::size_t size = std::min(bytes->size, length_ - received_);
    if (size == 0) return FramingError::kNone;
    received_ += size;
    const Span part{bytes->data, size};
    const FramingError error = compressed_ ? inflate(part, limits) : store(part, *frame_left);
    if (error == FramingError::kNone) advance(size, bytes, frame_left);
    return error;
}

FramingError MessageAssembler::store(Span bytes, std::size_t frame_left) {
    const Space space = message_->space();
    if (bytes.data == space.data && bytes.size <= space.size)  // read where it belongs
        return message_->extend(bytes.size) ? FramingError::kNone : FramingError::kOutOfMemory;
    if (make_room(bytes, bytes.size, frame_left) && message_->append(bytes.data, bytes.size))
        return FramingError::kNone;
    return FramingError::kOutOfMemory;
}

FramingError MessageAssembler::inflate(Span bytes, const FramingLimits& limits) {
    if (inflater_ == nullptr) inflater_ = Inflater::take(encoding_);
    if (inflater_ == nullptr) return FramingError::kOutOfMemory;
    const std::size_t room = limits.bytes_max - message_->size();
    const bool fits = limits.room >= room;
    const std::size_t bytes_max = message_->size() + (fits ? room : limits.room);
    const Inflater::Result result = inflater_->feed(bytes, message_.get(), bytes_max);
    if (result == Inflater::Result::kTooLarge && !fits) return FramingError::kOutOfMemory;
    if (result != Inflater::Result::kOk) return framing_error(result);
    if (!complete()) return FramingError::kNone;
    if (!inflater_->ended()) return FramingError::kCorrupt;
    Inflater::give_back(std::move(inflater_));
    return FramingError::kNone;
}

std::uint64_t MessageAssembler::inflated_bytes() const {
    if (!compressed_) return 0;
    return message_.span().size + (inflater_ != nullptr ? kInflaterBytes : 0);
}

BufferRef MessageAssembler::take() {
    BufferRef message = std::move(message_);
    clear();
    return message;
}

void MessageAssembler::clear() {
    message_ = BufferRef();
    prefix_size_ = 0;
    compressed_ = share_tried_ = false;
    length_ = received_ = 0;
    if (inflater_ != nullptr) Inflater::give_back(std::move(inflater_));
}

Status framing_status(FramingError error, const MessageAssembler& in, std::size_t bytes_max) {
    const std::string limit = std::to_string(bytes_max);
    switch (error) {
        case FramingError::kTooLarge:
            return Status::error(StatusCode::kResourceExhausted,
                                 "Received message larger than max (" +
                                     std::to_string(in.length()) + " vs. " + limit + ")");
        case FramingError::kInflatesTooLarge:
            return Status::error(
                StatusCode::kResourceExhausted,
                "Received message larger than max (it inflates to more than " + limit + " bytes)");
        case FramingError::kCompressed:
            return Status::error(StatusCode::kInternal,
                                 "compressed flag set without a grpc-encoding");
        case FramingError::kCorrupt:
            return Status::error(StatusCode::kInternal,
                                 "Unexpected error decompressing data for algorithm " +
                                     std::string(encoding_name(in.encoding())));
        case FramingError::kSecondMessage:
            return Status::error(StatusCode::kInternal, "more than one message in a unary call");
        case FramingError::kOutOfMemory:
            return Status::error(StatusCode::kResourceExhausted, "no memory for the message");
        default:
            return Status::error(StatusCode::kInternal, "Bad GRPC frame type");
    }
}

}  // namespace infersched::http2
