#include "http2/headers.h"

#include <algorithm>
#include <array>

namespace infersched::http2 {

namespace {

constexpr std::uint64_t kTimeoutValueMax = 99'999'999;         // eight digits
constexpr std::uint64_t kReadTimeoutValueMax = 1'000'000'000;  // no time-out beyond

struct TimeoutUnit {
    char letter;
    Nanos nanos;
};
constexpr TimeoutUnit kTimeoutUnits[] = {
    {'n', 1},       {'u', kMicrosecond}, {'m', kMillisecond},
    {'S', kSecond}, {'M', 60 * kSecond}, {'H', 3600 * kSecond}};

constexpr char kBase64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr char kHex[] = "0123456789ABCDEF";

constexpr std::array<std::int8_t, 256> make_base64_values() {
    std::array<std::int8_t, 256> values{};
    for (auto& value : values) value = -1;
    for (int i = 0; i < 64; ++i) values[static_cast<unsigned char>(kBase64[i])] = i;
    return values;
}
constexpr std::array<std::int8_t, 256> kBase64Values = make_base64_values();

int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

// gRPC clients may refuse a header block of more than 8 KiB, by HPACK's measure: a long error text
// must not cost them the status.
constexpr std::size_t kBlockBytesMax = 8192;
constexpr std::size_t kEntryBytes = 32;  // beyond name and value
// ":status", "content-type", the name of the text, and what UNIMPLEMENTED has besides.
constexpr std::size_t kFixedBytes = 224;
constexpr std::size_t kMessageBytesMin = 1024;
constexpr std::size_t kDetailsBytesMax = 2048;

// Cuts an encoded text between characters.
std::string shortened(std::string text, std::size_t bytes_max) {
    if (text.size() <= bytes_max) return text;
    std::size_t end = bytes_max;
    // Neither inside of %XX nor before a continuation byte (%80 to %BF) of UTF-8.
    const auto inside = [&text](std::size_t at) {
        if (text[at - 1] == '%' || text[at - 2] == '%') return true;
        return text[at] == '%' && text[at + 1] >= '8' && text[at + 1] <= 'B';
    };
    while (end > bytes_max - 16 && inside(end)) --end;
    text.resize(end);
    return text;
}

std::size_t block_bytes(const Headers& headers) {
    std::size_t bytes = 0;
    for (const auto& [name, value] : headers) bytes += name.size() + value.size() + kEntryBytes;
    return bytes;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_plain(char c) { return c >= ' ' && c <= '~' && c != '%'; }

}  // namespace

bool parse_decimal(std::string_view text, std::uint64_t* value) {
    if (text.empty() || text.size() > 19) return false;
    std::uint64_t sum = 0;
    for (char c : text) {
        if (c < '0' || c > '9') return false;
        sum = sum * 10 + static_cast<std::uint64_t>(c - '0');
    }
    *value = sum;
    return true;
}

// As gRPC's own servers do: blanks and more than eight digits are taken, too.
bool parse_timeout(std::string_view text, Nanos* timeout_ns) {
    const auto skip_blanks = [&text] {
        while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    };
    skip_blanks();
    if (text.empty() || !is_digit(text.front())) return false;
    std::uint64_t value = 0;
    for (; !text.empty() && is_digit(text.front()); text.remove_prefix(1))
        value = std::min(value * 10 + static_cast<std::uint64_t>(text.front() - '0'),
                         kReadTimeoutValueMax + 1);
    skip_blanks();
    if (text.empty()) return false;
    const char letter = text.front();
    text.remove_prefix(1);
    skip_blanks();
    if (!text.empty()) return false;
    for (const TimeoutUnit& unit : kTimeoutUnits) {
        if (unit.letter != letter) continue;
        if (value > kReadTimeoutValueMax ||
            __builtin_mul_overflow(static_cast<Nanos>(value), unit.nanos, timeout_ns))
            *timeout_ns = kNever;
        return true;
    }
    return false;
}

std::string format_timeout(Nanos timeout_ns) {
    const Nanos timeout = std::max<Nanos>(timeout_ns, 0);
    for (const TimeoutUnit& unit : kTimeoutUnits) {
        const Nanos value = timeout / unit.nanos + (timeout % unit.nanos != 0);
        if (static_cast<std::uint64_t>(value) <= kTimeoutValueMax)
            return std::to_string(value) + unit.letter;
    }
    return std::to_string(kTimeoutValueMax) + 'H';
}

std::string percent_encode(std::string_view text) {
    std::string encoded;
    encoded.reserve(text.size());
    for (char c : text) {
        if (is_plain(c)) {
            encoded.push_back(c);
            continue;
        }
        const auto byte = static_cast<unsigned char>(c);
        encoded.push_back('%');
        encoded.push_back(kHex[byte >> 4]);
        encoded.push_back(kHex[byte & 15]);
    }
    return encoded;
}

std::string percent_decode(std::string_view text) {
    std::string decoded;
    decoded.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '%' && text.size() - i > 2) {
            const int high = hex_value(text[i + 1]);
            const int low = hex_value(text[i + 2]);
            if (high >= 0 && low >= 0) {
                decoded.push_back(static_cast<char>(high << 4 | low));
                i += 2;
                continue;
            }
        }
        decoded.push_back(text[i]);
    }
    return decoded;
}

std::string base64_encode(std::string_view bytes) {
    std::string text;
    text.reserve((bytes.size() * 4 + 2) / 3);
    std::uint32_t bits = 0;
    unsigned count = 0;
    for (char c : bytes) {
        bits = bits << 8 | static_cast<unsigned char>(c);
        count += 8;
        while (count >= 6) {
            count -= 6;
            text.push_back(kBase64[bits >> count & 63]);
        }
    }
    if (count > 0) text.push_back(kBase64[bits << (6 - count) & 63]);
    return text;
}

bool base64_decode(std::string_view text, std::string* bytes) {
    bytes->clear();
    for (unsigned i = 0; i < 2 && !text.empty() && text.back() == '='; ++i) text.remove_suffix(1);
    if (text.size() % 4 == 1) return false;
    std::uint32_t bits = 0;
    unsigned count = 0;
    for (char c : text) {
        const std::int8_t value = kBase64Values[static_cast<unsigned char>(c)];
        if (value < 0) return false;
        bits = bits << 6 | static_cast<std::uint32_t>(value);
        count += 6;
        if (count >= 8) {
            count -= 8;
            bytes->push_back(static_cast<char>(bits >> count & 255));
        }
    }
    return true;
}

bool is_grpc_content_type(std::string_view value) {
    constexpr std::string_view kPrefix = "application/grpc";
    if (value.substr(0, kPrefix.size()) != kPrefix) return false;
    return value.size() == kPrefix.size() || value[kPrefix.size()] == '+' ||
           value[kPrefix.size()] == ';';
}

bool is_hop_header(std::string_view name) {
    return name == "te" || name == "connection" || name == "keep-alive" ||
           name == "proxy-connection" || name == "transfer-encoding" || name == "upgrade" ||
           name == "content-length" || name == "host";
}

bool is_custom_metadata(std::string_view name) {
    if (name.empty() || name[0] == ':' || name.substr(0, 5) == "grpc-") return false;
    return name != "content-type" && name != "date" && name != "server" && name != "trailer" &&
           name != "user-agent" && name != "accept-encoding" && !is_hop_header(name);
}

Headers status_trailers(const Status& status, const AnswerMetadata* metadata) {
    Headers trailers{{"grpc-status", std::to_string(static_cast<int>(status.code))}};
    if (!status.details.empty() && status.details.size() <= kDetailsBytesMax)
        trailers.emplace_back("grpc-status-details-bin", base64_encode(status.details));
    if (status.retry_pushback_ms >= 0)
        trailers.emplace_back("grpc-retry-pushback-ms", std::to_string(status.retry_pushback_ms));
    if (status.message.empty()) return trailers;
    std::size_t others = kFixedBytes + block_bytes(trailers);
    if (metadata != nullptr)
        others += block_bytes(metadata->headers) + block_bytes(metadata->trailers);
    const std::size_t room = kBlockBytesMax - std::min(others, kBlockBytesMax - kMessageBytesMin);
    trailers.emplace_back("grpc-message", shortened(percent_encode(status.message), room));
    return trailers;
}

}  // namespace infersched::http2
