// A mutator that knows scripts of HTTP/2 frames (script.h): it moves, changes and adds whole
// frames, with lengths that fit and header blocks that decode, and leaves the bytes inside to
// libFuzzer. Bytes changed anywhere mostly break a length or the header compression, which ends the
// session before anything else is seen.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "input.h"
#include "script.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t size_max);

namespace infersched::fuzz {

struct Frame {
    std::uint8_t type = 0;
    std::uint8_t flags = 0;
    std::uint32_t stream = 0;
    std::string payload;
};

// What the peer under test may be sent: header fields worth trying, each with some values.
struct HeaderWords {
    std::string_view name;
    std::vector<std::string_view> values;
};

class FrameMutator {
    using Headers = std::vector<std::pair<std::string_view, std::string_view>>;

  public:
    // `usual` are the header blocks of one stream: its first, and its trailers where it has some;
    // `words` what else may stand in one.
    FrameMutator(std::vector<Headers> usual, std::vector<HeaderWords> words)
        : usual_(std::move(usual)), words_(std::move(words)) {}

    std::size_t mutate(std::uint8_t* data, std::size_t size, std::size_t size_max, unsigned seed) {
        random_.seed(seed);
        if (below(4) == 0) return LLVMFuzzerMutate(data, size, size_max);
        split({reinterpret_cast<const char*>(data), size});
        for (std::size_t steps = 1 + below(3); steps != 0; --steps) step(size_max);
        return write(data, size_max);
    }

    // The first frames of one input, then the last ones of another.
    std::size_t cross(Span one, Span other, std::uint8_t* out, std::size_t size_max,
                      unsigned seed) {
        random_.seed(seed);
        split(other.text());
        std::vector<Frame> last;
        last.swap(frames_);
        split(one.text());
        frames_.resize(below(frames_.size() + 1));
        frames_.insert(frames_.end(),
                       last.begin() + static_cast<std::ptrdiff_t>(below(last.size() + 1)),
                       last.end());
        return write(out, size_max);
    }

  private:
    enum Type : std::uint8_t {
        kData,
        kHeaders,
        kPriority,
        kReset,
        kSettings,
        kPush,
        kPing,
        kGoaway,
        kWindow,
        kContinuation,
        kTypes
    };
    static bool is_known(std::uint8_t type) {
        return type <= kTypes || (type >= kAct && type < kScriptEnd);
    }
    static constexpr std::uint8_t kEndStream = 1;
    static constexpr std::uint8_t kEndHeaders = 4;
    static constexpr std::uint8_t kPadded = 8;

    std::size_t below(std::size_t bound) { return bound == 0 ? 0 : random_() % bound; }

    static std::string number(std::uint64_t value, int bytes) {
        std::string text;
        while (bytes-- > 0) text += static_cast<char>(value >> (8 * bytes));
        return text;
    }

    // Whole frames from the front; what remains holds the choices.
    void split(std::string_view input) {
        frames_.clear();
        begin_.clear();
        rest_.clear();
        Script script(span_of(input));
        Step step;
        while (script.next(&step)) {
            const std::string_view whole = step.whole.text();
            if (frames_.empty() && whole == kClientMagic) {
                begin_ = whole;
            } else if (whole.size() == kFrameHeadBytes + step.payload.size && is_known(step.type)) {
                frames_.push_back(
                    {step.type, step.flags, step.stream, std::string(step.payload.text())});
            } else {
                rest_ = std::string(
                    input.substr(static_cast<std::size_t>(whole.data() - input.data())));
                return;
            }
        }
    }

    std::size_t write(std::uint8_t* data, std::size_t size_max) const {
        const std::string joined = join();
        const std::size_t kept = std::min(joined.size(), size_max);
        std::memcpy(data, joined.data(), kept);
        return kept;
    }

    std::string join() const {
        std::string joined = begin_;
        for (const Frame& frame : frames_) {
            joined += number(frame.payload.size(), 3) + number(frame.type, 1);
            joined += number(frame.flags, 1) + number(frame.stream, 4) + frame.payload;
        }
        return joined + rest_;
    }

    void step(std::size_t size_max) {
        const std::size_t at = below(frames_.size());
        if (frames_.empty() || below(4) == 0) {
            const std::size_t place = below(frames_.size() + 1);
            std::vector<Frame> added{random_frame()};
            if (below(4) == 0) added = random_exchange();
            frames_.insert(frames_.begin() + static_cast<std::ptrdiff_t>(place), added.begin(),
                           added.end());
            return;
        }
        Frame& frame = frames_[at];
        switch (below(8)) {
            case 0:
                frames_.erase(frames_.begin() + static_cast<std::ptrdiff_t>(at));
                break;
            case 1:
                frames_.insert(frames_.begin() + static_cast<std::ptrdiff_t>(at), Frame(frame));
                break;
            case 2:
                std::swap(frame, frames_[below(frames_.size())]);
                break;
            case 3:
                frame.stream = random_stream();
                break;
            case 4:
                frame.flags ^= static_cast<std::uint8_t>(1u << below(6));
                break;
            case 5:
                cut(at);
                break;
            case 6:
                change(&frame.payload, size_max);
                break;
            default:
                change(&rest_, size_max);
        }
    }

    // Two frames of one: header blocks go on in a CONTINUATION, messages in further DATA.
    void cut(std::size_t at) {
        Frame first = frames_[at];
        if (first.type > kHeaders) return;
        Frame second = first;
        const std::size_t size = below(first.payload.size() + 1);
        second.payload = first.payload.substr(size);
        first.payload.resize(size);
        if (first.type == kHeaders) {
            second.type = kContinuation;
            second.flags = kEndHeaders;
            first.flags &= static_cast<std::uint8_t>(~kEndHeaders);
        } else {
            first.flags = 0;
        }
        frames_[at] = std::move(second);
        frames_.insert(frames_.begin() + static_cast<std::ptrdiff_t>(at), std::move(first));
    }

    void change(std::string* text, std::size_t size_max) {
        const std::size_t size = text->size();
        const std::size_t room = std::min(size + 64, std::max(size_max, size));
        text->resize(room);
        text->resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text->data()), size, room));
    }

    // Those that clients open, mostly; now and then a connection's or a server's.
    std::uint32_t random_stream() {
        return static_cast<std::uint32_t>(below(8) == 0 ? below(4) : 1 + 2 * below(6));
    }

    // All that the peer sends on one stream.
    std::vector<Frame> random_exchange() {
        const std::uint32_t stream = random_stream();
        const bool trailers = usual_.size() > 1;
        std::vector<Frame> frames;
        frames.push_back({kHeaders, kEndHeaders, stream, random_headers(0)});
        Frame message =
            below(2) == 0 ? random_step(kMessage) : Frame{kData, 0, stream, random_messages()};
        message.stream = stream;
        message.flags |= trailers ? 0 : kEndStream;
        frames.push_back(std::move(message));
        if (trailers) {
            const std::uint8_t flags = kEndHeaders | kEndStream;
            frames.push_back({kHeaders, flags, stream, random_headers(1)});
        }
        return frames;
    }

    // One of the script's own.
    Frame random_step(std::uint8_t type) {
        Frame frame;
        frame.type = type;
        std::size_t size = 1 + below(2);
        if (type == kMessage) {
            frame.stream = random_stream();
            frame.flags = static_cast<std::uint8_t>(below(8) == 0 ? kPadded : below(2));
            size = 5;
        } else if (type == kAct) {
            size = 1 + below(8);
        } else if (type == kFields) {
            frame.stream = random_stream();
            frame.flags = static_cast<std::uint8_t>(kEndHeaders + below(2));
            size = 3;
        }
        for (; size != 0; --size) frame.payload += number(random_(), 1);
        return frame;
    }

    Frame random_frame() {
        static constexpr Type kMostly[] = {kHeaders, kHeaders, kHeaders, kData,
                                           kData,    kReset,   kWindow,  kSettings};
        static constexpr ScriptType kSteps[] = {kAct, kAct,  kAct,     kAct,
                                                kCut, kPull, kMessage, kClock};
        if (below(2) == 0) return random_step(kSteps[below(8)]);
        Frame frame;
        frame.type = below(4) == 0 ? static_cast<std::uint8_t>(below(kTypes)) : kMostly[below(8)];
        frame.stream = random_stream();
        switch (frame.type) {
            case kData:
                frame.flags = static_cast<std::uint8_t>(below(2));
                frame.payload = random_messages();
                break;
            case kHeaders:
                frame.flags = static_cast<std::uint8_t>(kEndHeaders + below(2));
                frame.payload = random_headers(below(usual_.size()));
                break;
            case kContinuation:
                frame.flags = kEndHeaders;
                frame.payload = random_headers(below(usual_.size()));
                break;
            case kPriority:
                frame.payload = number(random_stream(), 4) + number(below(256), 1);
                break;
            case kReset:
                frame.payload = number(below(15), 4);
                break;
            case kSettings:
                frame.stream = 0;
                for (std::size_t count = below(3); count != 0; --count)
                    frame.payload += number(1 + below(8), 2) + number(random_size(), 4);
                if (frame.payload.empty()) frame.flags = static_cast<std::uint8_t>(below(2));
                break;
            case kPush:
                frame.payload = number(2 * below(4), 4) + random_headers(0);
                frame.flags = kEndHeaders;
                break;
            case kPing:
                frame.stream = 0;
                frame.payload = number(random_(), 8);
                break;
            case kGoaway:
                frame.stream = 0;
                frame.payload = number(random_stream(), 4) + number(below(15), 4);
                break;
            default:
                if (below(2) == 0) frame.stream = 0;
                frame.payload = number(random_size(), 4);
        }
        return frame;
    }

    std::uint32_t random_size() {
        static constexpr std::uint32_t kSizes[] = {0,      1,      3,        100,
                                                   16'384, 65'535, 1u << 24, ~0u >> 1};
        return kSizes[below(8)];
    }

    // gRPC messages, the last of them perhaps without its end.
    std::string random_messages() {
        std::string messages;
        for (std::size_t count = below(4); count != 0; --count) {
            static constexpr std::size_t kSizes[] = {0, 1, 7, 40, 300, 2'500};
            const std::size_t size = kSizes[below(6)];
            messages += number(below(8) == 0 ? 1 : 0, 1) + number(size, 4) + std::string(size, 'm');
        }
        if (below(8) == 0) messages.resize(below(messages.size() + 1));
        return messages;
    }

    // Literals, so that the block decodes wherever it stands.
    std::string random_headers(std::size_t usual) {
        Headers headers;
        if (below(8) != 0) headers = usual_[usual];
        for (std::size_t count = below(4); count != 0; --count) {
            const HeaderWords& word = words_[below(words_.size())];
            const std::string_view value = word.values[below(word.values.size())];
            const auto same = std::find_if(headers.begin(), headers.end(),
                                           [&](auto& header) { return header.first == word.name; });
            // Most names may stand once only.
            if (same == headers.end() || below(8) == 0) {
                headers.emplace_back(word.name, value);
            } else {
                same->second = value;
            }
        }
        std::string block;
        for (const auto& [name, value] : headers) {
            block += below(8) == 0 ? '\x40' : '\0';  // kept in the table or not
            add_texts(name, value, &block);
        }
        return block;
    }

    static void add_texts(std::string_view name, std::string_view value, std::string* block) {
        for (const std::string_view text : {name, value}) {
            // Of seven bits: longer ones would need a number of several bytes.
            *block += static_cast<char>(text.size());
            *block += text;
        }
    }

    const std::vector<Headers> usual_;
    const std::vector<HeaderWords> words_;
    std::minstd_rand random_;
    std::string begin_;
    std::vector<Frame> frames_;
    std::string rest_;
};

}  // namespace infersched::fuzz
