// An input as a script. Most of its frames are HTTP/2's: the peer sends them. Between them stand
// frames of types that HTTP/2 does not have: what the owner does, how the peer's bytes are cut, how
// time goes on, how much is pulled, and messages too large for an input. What is no whole frame is
// sent as it is. The configuration is chosen by the last bytes.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "http2/session.h"
#include "input.h"
#include "sent_frames.h"

namespace infersched::fuzz {

constexpr std::string_view kClientMagic = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr std::string_view kSettings("\0\0\0\4\0\0\0\0\0", 9);
constexpr std::string_view kSettingsAck("\0\0\0\4\1\0\0\0\0", 9);
constexpr std::size_t kFrameHeadBytes = 9;

enum ScriptType : std::uint8_t {
    kAct = 0xf0,      // choices of the owner
    kClock = 0xf1,    // one choice: how long after the last step
    kCut = 0xf2,      // two choices: pieces in which bytes come; where they are put
    kMessage = 0xf3,  // on its stream: size, encoding and padding of a message
    kPull = 0xf4,     // one choice: what is pulled after each step
    kFields = 0xf5,  // on its stream, three choices: how many header fields, how large, which first
    kScriptEnd = 0xf6,
};

struct Step {
    std::uint8_t type = 0;
    std::uint8_t flags = 0;
    std::uint32_t stream = 0;
    Span payload;
    Span whole;
};

class Script {
  public:
    explicit Script(Span input) : left_(input) {}

    bool next(Step* step) {
        if (left_.empty()) return false;
        *step = Step();
        std::size_t size = left_.size;
        if (begins_with(kClientMagic)) {
            size = kClientMagic.size();
        } else if (left_.size >= kFrameHeadBytes) {
            const std::uint8_t* at = left_.data;
            const std::size_t payload = static_cast<std::size_t>(at[0]) << 16 | at[1] << 8 | at[2];
            if (payload <= left_.size - kFrameHeadBytes) {
                size = kFrameHeadBytes + payload;
                step->type = at[3];
                step->flags = at[4];
                step->stream =
                    static_cast<std::uint32_t>(at[5]) << 24 | at[6] << 16 | at[7] << 8 | at[8];
                step->payload = {at + kFrameHeadBytes, payload};
            }
        }
        step->whole = {left_.data, size};
        left_ = {left_.data + size, left_.size - size};
        return true;
    }

  private:
    bool begins_with(std::string_view text) const {
        return left_.size >= text.size() && std::memcmp(left_.data, text.data(), text.size()) == 0;
    }

    Span left_;
};

// One gRPC message of `size` equal bytes with its prefix. Made once.
inline const std::string& grpc_message(std::size_t size, http2::Compression encoding) {
    static std::map<std::pair<std::size_t, http2::Compression>, std::string> made;
    std::string& message = made[{size, encoding}];
    if (!message.empty()) return message;
    std::string body(size, 'm');
    if (encoding != http2::Compression::kNone) {
        z_stream stream{};
        const int window_bits = encoding == http2::Compression::kGzip ? 15 + 16 : 15;
        EXPECT(deflateInit2(&stream, 9, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY) == Z_OK);
        std::string deflated(deflateBound(&stream, size), '\0');
        stream.next_in = reinterpret_cast<Bytef*>(body.data());
        stream.avail_in = static_cast<uInt>(size);
        stream.next_out = reinterpret_cast<Bytef*>(deflated.data());
        stream.avail_out = static_cast<uInt>(deflated.size());
        EXPECT(deflate(&stream, Z_FINISH) == Z_STREAM_END);
        deflated.resize(stream.total_out);
        deflateEnd(&stream);
        body.swap(deflated);
    }
    message += encoding == http2::Compression::kNone ? '\0' : '\1';
    for (int shift = 24; shift >= 0; shift -= 8) message += static_cast<char>(body.size() >> shift);
    message += body;
    return message;
}

// The peer of a session: sends what the script says, in pieces, and reads what is pulled.
template <typename Session>
class Peer {
  public:
    // `after_feed` is called each time that some bytes were fed.
    Peer(Session* session, std::function<void()> after_feed)
        : session_(session),
          after_feed_(std::move(after_feed)),
          sent_(std::is_same_v<Session, http2::ClientSession> ? kClientMagic : "") {}

    bool alive() const { return alive_; }

    void take(const Step& step) {
        Input choices(step.payload.data, step.payload.size);
        switch (step.type) {
            case kClock: {
                static constexpr Nanos kSteps[] = {0,
                                                   kMicrosecond,
                                                   kMillisecond,
                                                   100 * kMillisecond,
                                                   10 * kSecond,
                                                   3'600 * kSecond};
                now_ += kSteps[choices.choice(6)];
                break;
            }
            case kCut: {
                static constexpr std::size_t kPieces[] = {1 << 20, 1 << 20, 1, 9, 100, 5'000};
                const std::uint32_t choice = choices.choice(6);
                piece_ = kPieces[choice];
                gathers_ = choice == 1;
                in_place_ = !choices.flag();
                break;
            }
            case kMessage:
                send_message(step, &choices);
                break;
            case kFields:
                send_fields(step, &choices);
                break;
            case kPull: {
                static constexpr std::size_t kPulls[] = {1 << 20, 1'000, 1, 0};
                pull_ = kPulls[choices.choice(4)];
                break;
            }
            default:
                send(step.whole);
        }
    }

    // Bytes of several steps come at once where the script says so.
    void send(Span bytes) {
        gathered_.append(reinterpret_cast<const char*>(bytes.data), bytes.size);
        if (!gathers_) deliver();
    }

    // What was gathered.
    void deliver() {
        std::string text;
        text.swap(gathered_);
        Span bytes = span_of(text);
        // Of what is large a byte at a time takes long and shows nothing more.
        const std::size_t piece = std::max(piece_, bytes.size / 50);
        // The head of a large frame first: what follows may be read where it belongs.
        std::size_t size = in_place_ && bytes.size > kLargeFrameBytes ? kLargeHeadBytes : piece;
        for (; alive_ && !bytes.empty(); size = piece) {
            const Space space = in_place_ ? session_->receive_space() : Space();
            size = std::min(size, bytes.size);
            if (!space.empty()) size = std::min(size, space.size);
            const Span part{bytes.data, size};
            if (space.empty()) {
                alive_ = session_->feed(exact_copy(part).span(), now_);
            } else {
                std::memcpy(space.data, part.data, size);
                alive_ = session_->feed({space.data, size}, now_);
            }
            bytes = {bytes.data + size, bytes.size - size};
            after_feed_();
        }
    }

    void pull() { pull(pull_); }
    void pull(std::size_t bytes) {
        std::vector<Slice> slices;
        session_->pull(bytes, &slices);
        for (const Slice& slice : slices) sent_.read(slice.bytes);
    }

  private:
    static constexpr std::uint8_t kDataType = 0;
    static constexpr std::uint8_t kHeadersType = 1;
    static constexpr std::uint8_t kEndStream = 1;
    static constexpr std::uint8_t kPadded = 8;
    static constexpr std::size_t kLargeFrameBytes = 40'000;
    static constexpr std::size_t kLargeHeadBytes = 20;

    void send_message(const Step& step, Input* choices) {
        static constexpr std::size_t kSizes[] = {0,      1,      40,      90,      90,       90,
                                                 700,    700,    700,     700,     3'000,    3'000,
                                                 20'000, 70'000, 150'000, 300'000, 1'500'000};
        static constexpr std::size_t kFrames[] = {16'384, 16'384, 900, 1 << 20};
        std::size_t size = kSizes[choices->choice(17)];
        const auto encoding = static_cast<http2::Compression>(choices->choice(3));
        std::size_t* const room =
            encoding == http2::Compression::kNone ? &plain_left_ : &deflated_left_;
        if (size > *room) size = 0;
        *room -= size;
        const std::size_t frame_bytes = std::max(kFrames[choices->choice(4)], size / 40);
        const std::size_t padding = (step.flags & kPadded) != 0 ? choices->choice(250) : 0;
        std::string message = grpc_message(size, encoding);
        if (choices->choice(8) == 1) message.resize(message.size() / 2);
        std::string_view left = message;
        while (alive_ && !left.empty()) {
            const std::string_view part = left.substr(0, frame_bytes);
            left.remove_prefix(part.size());
            send_data(step, part, padding, left.empty());
        }
    }

    // HEADERS in one frame, as peers with large frames send them.
    void send_fields(const Step& step, Input* choices) {
        static constexpr std::size_t kCounts[] = {1, 3, 20, 70, 300};
        static constexpr std::size_t kValues[] = {0, 100, 1'000};
        const std::size_t count = kCounts[choices->choice(5)];
        const std::size_t value = std::min(kValues[choices->choice(3)], 70'000 / count);
        // RFC 7541, Appendix A: trailers, a reply's 200, a request's POST of "/".
        static constexpr std::string_view kFirst[] = {"", "\x88", "\x83\x86\x84"};
        std::string block(kFirst[choices->choice(3)]);
        for (std::size_t i = 0; i < count; ++i) {
            block.append("\0\4x-f", 5);
            block += static_cast<char>('a' + i % 26);
            add_length(value, &block);
            block.append(value, 'v');
        }
        send_frame(kHeadersType, step.flags, step.stream, block);
    }

    // RFC 7541, 5.1: of seven bits.
    static void add_length(std::size_t length, std::string* block) {
        constexpr std::size_t kPrefixMax = 127;
        if (length < kPrefixMax) {
            *block += static_cast<char>(length);
            return;
        }
        *block += static_cast<char>(kPrefixMax);
        for (length -= kPrefixMax; length >= 128; length /= 128)
            *block += static_cast<char>(length % 128 + 128);
        *block += static_cast<char>(length);
    }

    void send_frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream,
                    std::string_view payload) {
        std::string frame;
        for (const int shift : {16, 8, 0}) frame += static_cast<char>(payload.size() >> shift);
        frame += static_cast<char>(type);
        frame += static_cast<char>(flags);
        for (const int shift : {24, 16, 8, 0}) frame += static_cast<char>(stream >> shift);
        frame += payload;
        send(span_of(frame));
    }

    void send_data(const Step& step, std::string_view data, std::size_t padding, bool last) {
        const bool padded = (step.flags & kPadded) != 0;
        std::string payload;
        if (padded) payload += static_cast<char>(padding);
        payload += data;
        payload.append(padding, '\0');
        const int flags = (padded ? kPadded : 0) | (last ? step.flags & kEndStream : 0);
        send_frame(kDataType, static_cast<std::uint8_t>(flags), step.stream, payload);
    }

    Session* const session_;
    const std::function<void()> after_feed_;
    SentFrames sent_;
    Nanos now_ = 1;
    std::size_t piece_ = 1 << 20;
    std::size_t pull_ = 1 << 20;
    // Of messages made here, which keeps inputs quick.
    std::size_t plain_left_ = 400'000;
    std::size_t deflated_left_ = 4'600'000;
    bool gathers_ = false;
    bool in_place_ = true;
    bool alive_ = true;
    std::string gathered_;
};

}  // namespace infersched::fuzz
