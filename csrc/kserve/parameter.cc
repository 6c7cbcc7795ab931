#include "kserve/parameter.h"

#include <algorithm>

#include "kserve/utf8.h"
#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

bool read_value(Span value, int depth, Parameter* parameter) {
    WireReader reader(value);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        std::uint64_t bits = 0;
        switch (tag) {
            case wire_tag(1, kVarint):
                if (!reader.read_varint(&bits)) return false;
                parameter->kind = ParameterKind::kBool;
                parameter->bits = bits != 0;
                break;
            case wire_tag(2, kVarint):
                if (!reader.read_varint(&parameter->bits)) return false;
                parameter->kind = ParameterKind::kInt64;
                break;
            case wire_tag(3, kLengthDelimited): {
                Span text;
                if (!reader.read_bytes(&text) || !is_utf8(text)) return false;
                parameter->kind = ParameterKind::kString;
                parameter->text = text.text();
                break;
            }
            case wire_tag(4, kFixed64):
                if (!reader.read_fixed64(&parameter->bits)) return false;
                parameter->kind = ParameterKind::kDouble;
                break;
            case wire_tag(5, kVarint):
                if (!reader.read_varint(&parameter->bits)) return false;
                parameter->kind = ParameterKind::kUint64;
                break;
            default:
                if (!reader.skip(tag, depth)) return false;
        }
    }
    return true;
}

// The body of an InferParameter.
std::string value_bytes(const Parameter& parameter) {
    std::uint8_t bytes[16];
    std::uint8_t* at = bytes;
    switch (parameter.kind) {
        case ParameterKind::kNone:
            return {};
        case ParameterKind::kString: {
            *at++ = wire_tag(3, kLengthDelimited);
            at = put_varint(at, parameter.text.size());
            std::string value(reinterpret_cast<char*>(bytes), static_cast<std::size_t>(at - bytes));
            return value.append(parameter.text);
        }
        case ParameterKind::kDouble:
            *at++ = wire_tag(4, kFixed64);
            std::memcpy(at, &parameter.bits, 8);
            at += 8;
            break;
        case ParameterKind::kBool:
            *at++ = wire_tag(1, kVarint);
            at = put_varint(at, parameter.bits);
            break;
        case ParameterKind::kInt64:
            *at++ = wire_tag(2, kVarint);
            at = put_varint(at, parameter.bits);
            break;
        case ParameterKind::kUint64:
            *at++ = wire_tag(5, kVarint);
            at = put_varint(at, parameter.bits);
            break;
    }
    return std::string(reinterpret_cast<char*>(bytes), static_cast<std::size_t>(at - bytes));
}

}  // namespace

bool read_parameter(Span entry, int depth, Parameter* parameter) {
    *parameter = Parameter();
    WireReader reader(entry);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        Span bytes;
        if (!reader.read_tag(&tag)) return false;
        if (tag == wire_tag(1, kLengthDelimited)) {
            if (!reader.read_bytes(&bytes) || !is_utf8(bytes)) return false;
            parameter->key = bytes.text();
        } else if (tag == wire_tag(2, kLengthDelimited)) {
            if (!reader.read_bytes(&bytes)) return false;
            if (!read_value(bytes, depth + 1, parameter)) return false;
        } else if (!reader.skip(tag, depth)) {
            return false;
        }
    }
    return true;
}

std::uint32_t normalize_parameters(Parameter* parameters, std::uint32_t count) {
    if (count < 2) return count;
    std::stable_sort(parameters, parameters + count,
                     [](const Parameter& a, const Parameter& b) { return a.key < b.key; });
    std::uint32_t kept = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
        if (i + 1 < count && parameters[i].key == parameters[i + 1].key) continue;
        parameters[kept++] = parameters[i];
    }
    return kept;
}

const Parameter* find_parameter(const Parameter* parameters, std::uint32_t count,
                                std::string_view key) {
    for (std::uint32_t i = 0; i < count; ++i) {
        if (parameters[i].key == key) return &parameters[i];
    }
    return nullptr;
}

void append_field(std::string* out, std::uint8_t tag, std::string_view bytes) {
    std::uint8_t head[11];
    head[0] = tag;
    const std::uint8_t* end = put_varint(head + 1, bytes.size());
    out->append(reinterpret_cast<char*>(head), static_cast<std::size_t>(end - head));
    out->append(bytes);
}

void append_parameter(std::string* out, std::uint8_t tag, const Parameter& parameter) {
    std::string entry;
    append_field(&entry, wire_tag(1, kLengthDelimited), parameter.key);
    append_field(&entry, wire_tag(2, kLengthDelimited), value_bytes(parameter));
    append_field(out, tag, entry);
}

}  // namespace infersched::kserve
