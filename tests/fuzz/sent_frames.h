// Reads what a session writes as its peer does: whole frames, and in their DATA what the owners of
// the fuzzers send and nothing else, 'd' on forwarded streams and messages of 'm' on others.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <string_view>

#include "http2/session.h"
#include "input.h"

namespace infersched::fuzz {

class SentFrames {
  public:
    // A client's bytes begin with its magic.
    explicit SentFrames(std::string_view magic) : magic_(magic) {}

    void read(Span bytes) {
        unread_.append(bytes.text());
        if (unread_.size() < magic_.size()) return;
        EXPECT(unread_.compare(0, magic_.size(), magic_) == 0);
        std::string_view left = unread_;
        left.remove_prefix(magic_.size());
        magic_ = {};
        while (read_frame(&left)) {
        }
        unread_.erase(0, unread_.size() - left.size());
    }

  private:
    static constexpr std::size_t kHeadBytes = 9;
    static constexpr std::size_t kTypes = 10;

    struct Messages {
        std::string prefix;
        std::size_t left = 0;
    };

    static std::size_t number(std::string_view bytes) {
        std::size_t value = 0;
        for (const char byte : bytes) value = value << 8 | static_cast<std::uint8_t>(byte);
        return value;
    }
    static bool consists_of(std::string_view text, char byte) {
        return text.find_first_not_of(byte) == std::string_view::npos;
    }

    bool read_frame(std::string_view* left) {
        if (left->size() < kHeadBytes) return false;
        const std::size_t size = number(left->substr(0, 3));
        if (left->size() - kHeadBytes < size) return false;
        const auto type = static_cast<std::uint8_t>((*left)[3]);
        EXPECT(type < kTypes);
        if (type == 0) read_data(number(left->substr(5, 4)), left->substr(kHeadBytes, size));
        left->remove_prefix(kHeadBytes + size);
        return true;
    }

    void read_data(std::size_t stream, std::string_view data) {
        const bool forwarded = !data.empty() && data[0] == 'd' && streams_.count(stream) == 0;
        if (forwarded) EXPECT(consists_of(data, 'd'));
        if (data.empty() || forwarded) return;
        Messages& messages = streams_[stream];
        while (!data.empty()) {
            if (messages.left == 0) {
                read_prefix(&messages, &data);
                continue;
            }
            const std::string_view part = data.substr(0, messages.left);
            const bool compressed = messages.prefix[0] == 1;
            EXPECT(compressed || consists_of(part, 'm'));
            messages.left -= part.size();
            data.remove_prefix(part.size());
            if (messages.left == 0) messages.prefix.clear();
        }
    }

    static void read_prefix(Messages* messages, std::string_view* data) {
        const std::string_view part = data->substr(0, 5 - messages->prefix.size());
        messages->prefix += part;
        data->remove_prefix(part.size());
        if (messages->prefix.size() < 5) return;
        EXPECT(messages->prefix[0] == 0 || messages->prefix[0] == 1);
        messages->left = number(messages->prefix.substr(1));
        EXPECT(messages->left <= 300'000);
        if (messages->left == 0) messages->prefix.clear();
    }

    std::string_view magic_;
    std::string unread_;
    std::map<std::size_t, Messages> streams_;
};

}  // namespace infersched::fuzz
