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

constexpr std::size_t kLengthBytes = 4;  // before each string of a raw tensor
constexpr std::size_t kGrowthMax = 8;    // a varint of one byte may become eight

std::size_t number_bytes(ElementWire wire) { return wire == ElementWire::kFixed32 ? 4 : 8; }

// The wire type of a number that is not packed; of the others one that does not exist.
std::uint32_t number_wire(ElementWire wire) {
    switch (wire) {
        case ElementWire::kVarint:
            return kVarint;
        case ElementWire::kFixed32:
            return kFixed32;
        case ElementWire::kFixed64:
            return kFixed64;
        default:
            return 8;
    }
}

// Calls `visit(field, wire, run)` for every run of elements as it stands on the wire: the numbers
// of a packed field, one number, or the bytes of a BYTES element. False on malformed input or when
// `visit` says so.
template <typename Visit>
bool visit_runs(Span contents, int depth, const Visit& visit) {
    WireReader reader(contents);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        const std::uint32_t field = tag >> 3;
        const ElementWire wire = element_wire(field);
        Span run;
        if (wire != ElementWire::kNone && (tag & 7) == kLengthDelimited) {
            if (!reader.read_bytes(&run)) return false;
            if (run.empty() && wire != ElementWire::kBytes) continue;
        } else {
            const std::uint8_t* const begin = reader.at();
            if (!reader.skip(tag, depth)) return false;
            if ((tag & 7) != number_wire(wire)) continue;
            run = {begin, static_cast<std::size_t>(reader.at() - begin)};
        }
        if (!visit(field, wire, run)) return false;
    }
    return true;
}

constexpr std::size_t kWordBytes = 8;

// Whether so many varints of a byte each begin at `at`.
bool is_word_of_varints(const std::uint8_t* at) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, kWordBytes);
    return (word & 0x8080808080808080) == 0;
}

// Calls `visit_word(at)` for eight varints of a byte each, `visit_one(value)` for others. False on
// malformed input.
template <typename VisitWord, typename VisitOne>
bool visit_varints(Span run, const VisitWord& visit_word, const VisitOne& visit_one) {
    const std::uint8_t* const end = run.data + run.size;
    for (const std::uint8_t* at = run.data; at != end;) {
        if (static_cast<std::size_t>(end - at) >= kWordBytes && is_word_of_varints(at)) {
            visit_word(at);
            at += kWordBytes;
            continue;
        }
        WireReader reader({at, static_cast<std::size_t>(end - at)});
        std::uint64_t value = 0;
        if (!reader.read_varint(&value)) return false;
        visit_one(value);
        at = reader.at();
    }
    return true;
}

bool count_varints(Span run, std::size_t* count) {
    return visit_varints(
        run, [count](const std::uint8_t*) { *count += kWordBytes; },
        [count](std::uint64_t) { ++*count; });
}

template <typename Number>
void put_varints(Span run, bool as_bool, std::uint8_t* out) {
    const auto put = [&out](Number number) {
        std::memcpy(out, &number, sizeof number);
        out += sizeof number;
    };
    const auto put_word = [&](const std::uint8_t* at) {
        for (std::size_t i = 0; i < kWordBytes; ++i) {
            put(as_bool ? at[i] != 0 : static_cast<Number>(at[i]));
        }
    };
    (void)visit_varints(run, put_word, [&](std::uint64_t value) {
        put(as_bool ? value != 0 : static_cast<Number>(value));
    });
}

bool append_varints(Span run, std::uint32_t field, std::size_t width, Buffer* raw) {
    std::size_t count = 0;
    if (!count_varints(run, &count)) return false;
    std::uint8_t* const out = raw->extend(count * width);
    if (out == nullptr) return false;
    const bool as_bool = field == kBoolContents;
    switch (width) {
        case 1:
            put_varints<std::uint8_t>(run, as_bool, out);
            break;
        case 2:
            put_varints<std::uint16_t>(run, as_bool, out);
            break;
        case 4:
            put_varints<std::uint32_t>(run, as_bool, out);
            break;
        default:
            put_varints<std::uint64_t>(run, as_bool, out);
    }
    return true;
}

// What append_raw() makes of one run; false: the run is malformed.
bool add_raw_bytes(ElementWire wire, Span run, std::size_t width, std::size_t* bytes) {
    std::size_t count = 0;
    if (wire == ElementWire::kVarint && !count_varints(run, &count)) return false;
    *bytes += wire == ElementWire::kVarint  ? count * width
              : wire == ElementWire::kBytes ? kLengthBytes + run.size
                                            : run.size;
    return true;
}

}  // namespace

bool is_typed_contents(Span contents, int depth) {
    return visit_runs(contents, depth, [](std::uint32_t, ElementWire wire, Span run) {
        std::size_t count = 0;
        if (wire == ElementWire::kVarint) return count_varints(run, &count);
        return wire == ElementWire::kBytes || run.size % number_bytes(wire) == 0;
    });
}

std::uint32_t filled_contents(Span contents) {
    std::uint32_t filled = 0;
    const auto note = [&filled](std::uint32_t field, ElementWire, Span) {
        filled |= 1u << field;
        return true;
    };
    return visit_runs(contents, 0, note) ? filled : 0;
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

bool raw_bytes_within(Span contents, std::uint32_t field, DataType type, std::size_t bytes_max) {
    if (contents.size <= bytes_max / kGrowthMax) return true;
    const std::size_t width = element_bytes(type);
    std::size_t bytes = 0;
    const auto add = [&](std::uint32_t found, ElementWire wire, Span run) {
        return found != field || add_raw_bytes(wire, run, width, &bytes);
    };
    return visit_runs(contents, 0, add) && bytes <= bytes_max;
}

bool append_raw(Span contents, std::uint32_t field, DataType type, Buffer* raw) {
    const std::size_t width = element_bytes(type);
    const auto append = [&](std::uint32_t found, ElementWire wire, Span run) {
        if (found != field) return true;
        if (wire == ElementWire::kVarint) return append_varints(run, field, width, raw);
        if (wire != ElementWire::kBytes) return raw->append(run.data, run.size);
        const auto length = static_cast<std::uint32_t>(run.size);
        return raw->append(&length, kLengthBytes) && raw->append(run.data, run.size);
    };
    return visit_runs(contents, 0, append);
}

}  // namespace infersched::kserve
