#include "kserve/typed_contents.h"

#include "kserve/wire_reader.h"

namespace infersched::kserve {

namespace {

enum class ElementWire : std::uint8_t { kVarint, kFixed32, kFixed64, kBytes, kNone };

ElementWire element_wire(std::uint32_t field) {
    switch (field) {
        case kBoolContents:
        case kIntContents:
        case kInt64Contents:
        case kUintContents:
        case kUint64Contents:
            return ElementWire::kVarint;
        case kFp32Contents:
            return ElementWire::kFixed32;
        case kFp64Contents:
            return ElementWire::kFixed64;
        case kBytesContents:
            return ElementWire::kBytes;
        default:
            return ElementWire::kNone;
    }
}

// Calls `visit(field, bytes)` for every element: the little-endian bytes of a number (8 for a
// varint), the bytes themselves of a BYTES element. False on malformed input or when `visit` says
// so.
template <typename Visit>
bool visit_varints(WireReader* reader, std::uint32_t field, bool one, const Visit& visit) {
    do {
        std::uint64_t value = 0;
        if (!reader->read_varint(&value)) return false;
        if (field == kBoolContents) value = value != 0;
        if (!visit(field, Span{reinterpret_cast<const std::uint8_t*>(&value), 8})) return false;
    } while (!one && !reader->done());
    return true;
}

template <typename Visit>
bool visit_packed(Span packed, std::uint32_t field, ElementWire wire, const Visit& visit) {
    if (packed.empty()) return true;
    if (wire == ElementWire::kVarint) {
        WireReader reader(packed);
        return visit_varints(&reader, field, false, visit);
    }
    const std::size_t width = wire == ElementWire::kFixed32 ? 4 : 8;
    return packed.size % width == 0 && visit(field, packed);
}

template <typename Visit>
bool visit_elements(Span contents, int depth, const Visit& visit) {
    WireReader reader(contents);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        const std::uint32_t field = tag >> 3;
        const ElementWire wire = element_wire(field);
        Span bytes;
        if (wire != ElementWire::kNone && (tag & 7) == kLengthDelimited) {
            if (!reader.read_bytes(&bytes)) return false;
            const bool fine = wire == ElementWire::kBytes ? visit(field, bytes)
                                                          : visit_packed(bytes, field, wire, visit);
            if (!fine) return false;
        } else if (wire == ElementWire::kVarint && (tag & 7) == kVarint) {
            if (!visit_varints(&reader, field, true, visit)) return false;
        } else if (wire == ElementWire::kFixed32 && (tag & 7) == kFixed32) {
            std::uint32_t value = 0;
            if (!reader.read_fixed32(&value)) return false;
            if (!visit(field, Span{reinterpret_cast<std::uint8_t*>(&value), 4})) return false;
        } else if (wire == ElementWire::kFixed64 && (tag & 7) == kFixed64) {
            std::uint64_t value = 0;
            if (!reader.read_fixed64(&value)) return false;
            if (!visit(field, Span{reinterpret_cast<std::uint8_t*>(&value), 8})) return false;
        } else if (!reader.skip(tag, depth)) {
            return false;
        }
    }
    return true;
}

}  // namespace

bool is_typed_contents(Span contents, int depth) {
    return visit_elements(contents, depth, [](std::uint32_t, Span) { return true; });
}

std::uint32_t filled_contents(Span contents) {
    std::uint32_t filled = 0;
    const auto note = [&filled](std::uint32_t field, Span) {
        filled |= 1u << field;
        return true;
    };
    return visit_elements(contents, 0, note) ? filled : 0;
}

std::uint32_t contents_field(DataType type) {
    switch (type) {
        case DataType::kBool:
            return kBoolContents;
        case DataType::kInt8:
        case DataType::kInt16:
        case DataType::kInt32:
            return kIntContents;
        case DataType::kInt64:
            return kInt64Contents;
        case DataType::kUint8:
        case DataType::kUint16:
        case DataType::kUint32:
            return kUintContents;
        case DataType::kUint64:
            return kUint64Contents;
        case DataType::kFp32:
            return kFp32Contents;
        case DataType::kFp64:
            return kFp64Contents;
        case DataType::kBytes:
            return kBytesContents;
        default:
            return 0;
    }
}

bool append_raw(Span contents, std::uint32_t field, DataType type, Buffer* raw) {
    const std::size_t width = element_bytes(type);
    const ElementWire wire = element_wire(field);
    const auto append = [&](std::uint32_t found, Span element) {
        if (found != field) return true;
        if (wire == ElementWire::kBytes) {
            const std::uint32_t length = static_cast<std::uint32_t>(element.size);
            return raw->append(&length, 4) && raw->append(element.data, element.size);
        }
        if (wire == ElementWire::kVarint) return raw->append(element.data, width);
        return raw->append(element.data, element.size);
    };
    return visit_elements(contents, 0, append);
}

}  // namespace infersched::kserve
