#include "kserve/reply.h"

#include <utility>

#include "kserve/request_check.h"
#include "kserve/typed_contents.h"
#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

constexpr std::uint32_t kElementsKept = 64;
constexpr std::uint32_t kBytesKept = 4096;
// Far beyond every model; beyond it a reply is refused, so that offsets fit 32 bits.
constexpr std::uint32_t kElementsMax = 65536;
constexpr std::uint32_t kHeadBytesMax = 1u << 28;

bool refuse(std::string* error, const ReplyOutput& output, const char* why) {
    *error = "output '" + std::string(output.name) + "' " + why;
    return false;
}

}  // namespace

void Reply::State::recycle() {
    message = converted = BufferRef();
    if (!blocks.empty()) blocks.clear();
    model_name = model_version = id = {};
    id_fields.clear_beyond(kElementsKept);
    outputs.clear_beyond(kElementsKept);
    dims.clear_beyond(kElementsKept);
    contents.clear_beyond(kElementsKept);
    bytes.clear_beyond(kBytesKept);
    head = parameters = {};
    raw_count = rows = 0;
}

void Reply::State::append_raw(Span field) {
    const std::uint32_t size = bytes.size();
    bytes.resize(size + static_cast<std::uint32_t>(field.size));
    if (field.size != 0) std::memcpy(bytes.data() + size, field.data, field.size);
}

void Reply::State::append(std::uint8_t tag, std::string_view value) {
    if (value.empty()) return;
    std::uint8_t start[11];
    start[0] = tag;
    const std::uint8_t* end = put_varint(start + 1, value.size());
    append_raw({start, static_cast<std::size_t>(end - start)});
    append_raw(span_of(value));
}

bool Reply::State::scan_dims(Span packed) {
    WireReader reader(packed);
    while (!reader.done()) {
        std::uint64_t dim = 0;
        if (!reader.read_varint(&dim) || dims.size() >= kElementsMax) return false;
        dims.push_back(static_cast<std::int64_t>(dim));
    }
    return true;
}

bool Reply::State::scan_output(Span field) {
    ReplyOutput output;
    output.dims_first = dims.size();
    output.contents_first = contents.size();
    output.parameters.first = bytes.size();
    WireReader reader(field);
    while (!reader.done()) {
        const std::uint8_t* field_begin = reader.at();
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        Span part;
        std::uint64_t dim = 0;
        switch (tag) {
            case wire_tag(1, kLengthDelimited):
                if (!reader.read_bytes(&part)) return false;
                output.name = part.text();
                break;
            case wire_tag(2, kLengthDelimited):
                if (!reader.read_bytes(&part)) return false;
                output.data_type = part.text();
                break;
            case wire_tag(3, kLengthDelimited):
                if (!reader.read_bytes(&part) || !scan_dims(part)) return false;
                break;
            case wire_tag(3, kVarint):
                if (!reader.read_varint(&dim) || dims.size() >= kElementsMax) return false;
                dims.push_back(static_cast<std::int64_t>(dim));
                break;
            case wire_tag(4, kLengthDelimited):
                if (!reader.read_bytes(&part) || part.size > kHeadBytesMax) return false;
                append_raw({field_begin, static_cast<std::size_t>(reader.at() - field_begin)});
                break;
            case wire_tag(5, kLengthDelimited):
                if (!reader.read_bytes(&part)) return false;
                if (contents.size() >= kElementsMax) return false;
                contents.push_back(part);
                break;
            default:
                if (!reader.skip(tag, 1)) return false;
        }
        if (bytes.size() > kHeadBytesMax) return false;
    }
    output.dims_count = dims.size() - output.dims_first;
    output.contents_count = contents.size() - output.contents_first;
    output.parameters.size = bytes.size() - output.parameters.first;
    if (outputs.size() >= kElementsMax) return false;
    outputs.push_back(output);
    return true;
}

// What the answers of all members begin with.
void Reply::State::write_heads() {
    for (ReplyOutput& output : outputs) {
        output.head.first = bytes.size();
        append(wire_tag(1, kLengthDelimited), output.name);
        append(wire_tag(2, kLengthDelimited), output.data_type);
        output.head.size = bytes.size() - output.head.first;
    }
    head.first = bytes.size();
    append(wire_tag(1, kLengthDelimited), model_name);
    append(wire_tag(2, kLengthDelimited), model_version);
    head.size = bytes.size() - head.first;
}

bool Reply::State::scan(Span whole) {
    InlineArray<Span, 8> raw;
    InlineArray<Span, 4> parameter_fields;
    WireReader reader(whole);
    while (!reader.done()) {
        const std::uint8_t* field_begin = reader.at();
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        if ((tag & 7) != kLengthDelimited || tag >> 3 > 6) {
            if (!reader.skip(tag, 0)) return false;
            continue;
        }
        Span part;
        if (!reader.read_bytes(&part)) return false;
        const Span field = {field_begin, static_cast<std::size_t>(reader.at() - field_begin)};
        switch (tag >> 3) {
            case 1:
                model_name = part.text();
                break;
            case 2:
                model_version = part.text();
                break;
            case 3:
                id = part.text();
                if (id_fields.size() >= kElementsMax) return false;
                id_fields.push_back(field);
                break;
            case 4:
                if (field.size > kHeadBytesMax || parameter_fields.size() >= kElementsMax) {
                    return false;
                }
                parameter_fields.push_back(field);
                break;
            case 5:
                if (!scan_output(part)) return false;
                break;
            default:
                if (raw.size() >= kElementsMax) return false;
                raw.push_back(part);
        }
    }
    parameters.first = bytes.size();
    for (const Span& field : parameter_fields) {
        if (bytes.size() > kHeadBytesMax) return false;
        append_raw(field);
    }
    parameters.size = bytes.size() - parameters.first;
    raw_count = raw.size();
    for (std::uint32_t i = 0; i < outputs.size() && i < raw.size(); ++i) outputs[i].data = raw[i];
    write_heads();
    return true;
}

Reply::Reply() = default;

Reply::~Reply() {
    if (state_ != nullptr) ReplyAccess::give(state_);
}

Reply::Reply(Reply&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}

Reply& Reply::operator=(Reply&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
}

bool Reply::read(const BufferRef& message, std::string* error) {
    if (state_ == nullptr) {
        state_ = ReplyAccess::take();
    } else {
        state_->recycle();
    }
    state_->message = message;
    if (state_->scan(message.span())) return true;
    *error = "reply is not a ModelInferResponse";
    return false;
}

// Outputs of typed contents get raw ones. A reply has one kind or the other.
bool Reply::State::convert_contents(std::string* error) {
    converted = BufferRef::make();
    for (ReplyOutput& output : outputs) {
        const DataType type = parse_data_type(output.data_type);
        const std::uint32_t wanted = contents_field(type);
        const std::size_t begin = converted->size();
        for (std::uint32_t i = 0; i < output.contents_count; ++i) {
            const Span part = contents[output.contents_first + i];
            const std::uint32_t filled = filled_contents(part);
            if (!is_typed_contents(part, 2) || (filled & ~(1u << wanted)) != 0) {
                return refuse(error, output, "has contents of another datatype");
            }
            if (filled != 0 && !kserve::append_raw(part, wanted, type, converted.get())) {
                return refuse(error, output, "is too large");
            }
        }
        output.data.size = converted->size() - begin;
    }
    // Where the bytes lie is known only once the buffer has stopped growing.
    const std::uint8_t* at = converted->data();
    for (ReplyOutput& output : outputs) {
        output.data.data = at;
        at += output.data.size;
    }
    return true;
}

bool Reply::State::split_output(ReplyOutput* output, std::uint32_t split_rows, std::string* error) {
    const std::int64_t* row_dims = dims.data() + output->dims_first;
    const DataType type = parse_data_type(output->data_type);
    if (type == DataType::kInvalid) return refuse(error, *output, "has no known datatype");
    if (output->dims_count == 0 || row_dims[0] != static_cast<std::int64_t>(split_rows)) {
        return refuse(error, *output, "has another number of rows than the batch");
    }
    std::uint64_t elements = 1;
    output->tail_dims.first = bytes.size();
    for (std::uint32_t i = 1; i < output->dims_count; ++i) {
        const auto dim = static_cast<std::uint64_t>(row_dims[i]);
        if (row_dims[i] < 0 || __builtin_mul_overflow(elements, dim, &elements)) {
            return refuse(error, *output, "has an impossible shape");
        }
        std::uint8_t varint[10];
        const std::uint8_t* end = put_varint(varint, dim);
        append_raw({varint, static_cast<std::size_t>(end - varint)});
    }
    output->tail_dims.size = bytes.size() - output->tail_dims.first;
    std::uint64_t total = 0;
    if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(split_rows), &total)) {
        return refuse(error, *output, "has an impossible shape");
    }
    output->is_bytes = type == DataType::kBytes;
    output->elements_per_row = elements;
    output->cursor = RowCursor();
    if (output->is_bytes) {
        if (is_bytes_tensor(output->data, total)) return true;
        return refuse(error, *output, "has strings that do not agree with its shape");
    }
    if (__builtin_mul_overflow(total, element_bytes(type), &total) || total != output->data.size) {
        return refuse(error, *output, "has a byte size that does not agree with its shape");
    }
    output->row_bytes = split_rows == 0 ? 0 : output->data.size / split_rows;
    return true;
}

bool Reply::State::split(std::uint32_t split_rows, std::string* error) {
    if (!contents.empty() && raw_count == 0) {
        if (!convert_contents(error)) return false;
    } else if (raw_count != outputs.size() || !contents.empty()) {
        *error = "reply has " + std::to_string(outputs.size()) + " outputs but " +
                 std::to_string(raw_count) + " raw and " + std::to_string(contents.size()) +
                 " typed contents";
        return false;
    }
    for (ReplyOutput& output : outputs) {
        if (!split_output(&output, split_rows, error)) return false;
    }
    rows = split_rows;
    return true;
}

bool Reply::splits_into(std::uint32_t rows, std::string* error) {
    return state_->split(rows, error);
}

bool Reply::State::place(std::string_view name, const BufferRef& block, std::string* error) {
    for (ReplyOutput& output : outputs) {
        if (output.name != name) continue;
        if (!output.data.empty()) return true;  // on the wire, after all
        if (raw_count != outputs.size()) return refuse(error, output, "has typed contents");
        std::uint64_t size = element_bytes(parse_data_type(output.data_type));
        if (size == 0) return refuse(error, output, "has a datatype without a fixed size");
        for (std::uint32_t i = 0; i < output.dims_count; ++i) {
            const std::int64_t dim = dims[output.dims_first + i];
            if (dim < 0 || __builtin_mul_overflow(size, static_cast<std::uint64_t>(dim), &size))
                return refuse(error, output, "has an impossible shape");
        }
        if (size > block->size()) return refuse(error, output, "does not fit its place");
        output.data = {block->data(), static_cast<std::size_t>(size)};
        output.block = static_cast<std::int32_t>(blocks.size());
        blocks.push_back(block);
        return true;
    }
    return true;  // the model gave none
}

bool Reply::place(std::string_view name, const BufferRef& block, std::string* error) {
    return state_->place(name, block, error);
}

Reply::State* ReplyAccess::take() { return list().take(); }

void ReplyAccess::give(Reply::State* state) { list().give(state); }

// Never destroyed: replies may outlive the statics of their thread.
FreeList<Reply::State, ReplyAccess::kKept>& ReplyAccess::list() {
    static thread_local auto* const free_replies = new FreeList<Reply::State, kKept>();
    return *free_replies;
}

}  // namespace infersched::kserve
