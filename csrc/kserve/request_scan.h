// One pass over the bytes of a ModelInferRequest: where everything is, nothing judged but the wire.
//
// All views point into the message. Lists keep the order of the message; the scan object is scratch
// memory that is used again for the next message.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/bytes.h"
#include "kserve/inline_array.h"

namespace infersched::kserve {

enum class ParameterKind : std::uint8_t { kNone, kBool, kInt64, kString, kDouble, kUint64 };

// An entry of a map<string, InferParameter>.
struct Parameter {
    std::string_view key;
    std::string_view text;   // kString
    std::uint64_t bits = 0;  // of every other kind, as on the wire
    ParameterKind kind = ParameterKind::kNone;
};

// A run of elements of one of the lists of RequestScan.
struct Range {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
};

struct ScannedInput {
    std::string_view name;
    bool name_cut = false;  // at a NUL
    std::string_view data_type;
    Range dims;
    Range parameters;
    Range contents;  // typed contents, empty when the field is absent
};

struct ScannedOutput {
    std::string_view name;
    Range parameters;
};

struct RequestScan {
    std::string_view model_name;
    bool model_name_cut = false;  // at a NUL
    std::string_view model_version;
    std::string_view id;
    std::string_view whole_id;             // with what stands behind a NUL
    InlineArray<Parameter, 8> parameters;  // of the request itself
    InlineArray<Span, 4> consumed_fields;  // the fields that hold `priority` and `timeout`
    InlineArray<ScannedInput, 8> inputs;
    InlineArray<ScannedOutput, 8> outputs;
    InlineArray<Span, 8> raw_contents;
    InlineArray<std::int64_t, 32> dims;
    InlineArray<Parameter, 8> tensor_parameters;
    InlineArray<Span, 4> contents;
    // More elements than any model has; the lists are then cut short.
    bool overfull = false;

    void clear();
};

enum class ScanResult : std::uint8_t { kOk, kMalformed };

// kMalformed exactly when protobuf's parser would refuse the message.
ScanResult scan_request(Span message, RequestScan* scan);

// What c_str() of a string makes of it: Triton hands names on as C strings.
inline std::string_view until_nul(std::string_view text) {
    if (text.empty()) return text;
    const void* nul = std::memchr(text.data(), 0, text.size());
    if (nul == nullptr) return text;
    return text.substr(0, static_cast<std::size_t>(static_cast<const char*>(nul) - text.data()));
}

}  // namespace infersched::kserve
