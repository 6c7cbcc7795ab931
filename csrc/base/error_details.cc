#include "base/error_details.h"

#include <algorithm>
#include <cstdint>

namespace infersched {

namespace {

void put_varint(std::string* out, std::uint64_t value) {
    while (value >= 0x80) {
        out->push_back(static_cast<char>(value | 0x80));
        value >>= 7;
    }
    out->push_back(static_cast<char>(value));
}

void put_integer(std::string* out, unsigned field, std::uint64_t value) {
    if (value == 0) return;
    put_varint(out, field << 3);
    put_varint(out, value);
}

// A length-delimited field; `keep_empty` for elements of repeated fields.
void put_bytes(std::string* out, unsigned field, std::string_view bytes, bool keep_empty = false) {
    if (bytes.empty() && !keep_empty) return;
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.size());
    out->append(bytes);
}

}  // namespace

void ErrorDetails::add(std::string_view type, std::string_view value) {
    std::string any;
    put_bytes(&any, 1, std::string("type.googleapis.com/google.rpc.").append(type));
    put_bytes(&any, 2, value);
    put_bytes(&details_, 3, any, true);
}

ErrorDetails& ErrorDetails::error_info(std::string_view reason, Metadata metadata) {
    std::string value;
    put_bytes(&value, 1, reason);
    put_bytes(&value, 2, kErrorDomain);
    for (const auto& [key, text] : metadata) {
        std::string entry;
        put_bytes(&entry, 1, key);
        put_bytes(&entry, 2, text);
        put_bytes(&value, 3, entry, true);
    }
    add("ErrorInfo", value);
    return *this;
}

ErrorDetails& ErrorDetails::retry_info(Nanos delay_ns) {
    const Nanos delay = std::max<Nanos>(delay_ns, 0);
    std::string duration;
    put_integer(&duration, 1, static_cast<std::uint64_t>(delay / kSecond));
    put_integer(&duration, 2, static_cast<std::uint64_t>(delay % kSecond));
    std::string value;
    put_bytes(&value, 1, duration, true);
    add("RetryInfo", value);
    return *this;
}

ErrorDetails& ErrorDetails::quota_failure(std::string_view subject, std::string_view description) {
    std::string violation;
    put_bytes(&violation, 1, subject);
    put_bytes(&violation, 2, description);
    std::string value;
    put_bytes(&value, 1, violation, true);
    add("QuotaFailure", value);
    return *this;
}

ErrorDetails& ErrorDetails::bad_request(std::string_view field, std::string_view description) {
    std::string violation;
    put_bytes(&violation, 1, field);
    put_bytes(&violation, 2, description);
    std::string value;
    put_bytes(&value, 1, violation, true);
    add("BadRequest", value);
    return *this;
}

std::string ErrorDetails::serialise(StatusCode code, std::string_view message) const {
    std::string status;
    put_integer(&status, 1, static_cast<std::uint64_t>(code));
    put_bytes(&status, 2, message);
    status.append(details_);
    return status;
}

}  // namespace infersched
