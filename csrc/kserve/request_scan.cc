#include "kserve/request_scan.h"

#include "kserve/parameter.h"
#include "kserve/typed_contents.h"
#include "kserve/utf8.h"
#include "kserve/wire_reader.h"

namespace infersched::kserve {

namespace {

// Elements of one kind in one request. Far beyond every model; what a hostile message of millions
// of two-byte elements can make us hold ends here.
constexpr std::uint32_t kElementsMax = 65536;

template <typename T, std::uint32_t N>
void keep(RequestScan* scan, InlineArray<T, N>* list, const T& element) {
    if (list->size() < kElementsMax) {
        list->push_back(element);
    } else {
        scan->overfull = true;
    }
}

// `cut`, if given, tells whether a NUL ended the text early; `whole` is what was sent.
bool read_text(WireReader* reader, std::string_view* text, bool* cut = nullptr,
               std::string_view* whole = nullptr) {
    Span bytes;
    if (!reader->read_bytes(&bytes) || !is_utf8(bytes)) return false;
    *text = until_nul(bytes.text());
    if (whole != nullptr) *whole = bytes.text();
    if (cut != nullptr) *cut = text->size() != bytes.size;
    return true;
}

bool read_packed_dims(Span packed, RequestScan* scan) {
    WireReader reader(packed);
    while (!reader.done()) {
        std::uint64_t dim = 0;
        if (!reader.read_varint(&dim)) return false;
        keep(scan, &scan->dims, static_cast<std::int64_t>(dim));
    }
    return true;
}

bool read_tensor_parameter(WireReader* reader, RequestScan* scan) {
    Span entry;
    Parameter parameter;
    if (!reader->read_bytes(&entry) || !read_parameter(entry, 2, &parameter)) return false;
    keep(scan, &scan->tensor_parameters, parameter);
    return true;
}

// Applies the map rule to the parameters added since `range->first`.
void close_parameters(RequestScan* scan, Range* range) {
    Parameter* first = scan->tensor_parameters.data() + range->first;
    range->count = normalize_parameters(first, scan->tensor_parameters.size() - range->first);
    scan->tensor_parameters.resize(range->first + range->count);
}

bool scan_input(Span bytes, RequestScan* scan) {
    ScannedInput input;
    input.dims.first = scan->dims.size();
    input.parameters.first = scan->tensor_parameters.size();
    input.contents.first = scan->contents.size();
    WireReader reader(bytes);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        Span field;
        std::uint64_t dim = 0;
        switch (tag) {
            case wire_tag(1, kLengthDelimited):
                if (!read_text(&reader, &input.name, &input.name_cut)) return false;
                break;
            case wire_tag(2, kLengthDelimited):
                if (!read_text(&reader, &input.data_type)) return false;
                break;
            case wire_tag(3, kLengthDelimited):
                if (!reader.read_bytes(&field) || !read_packed_dims(field, scan)) return false;
                break;
            case wire_tag(3, kVarint):
                if (!reader.read_varint(&dim)) return false;
                keep(scan, &scan->dims, static_cast<std::int64_t>(dim));
                break;
            case wire_tag(4, kLengthDelimited):
                if (!read_tensor_parameter(&reader, scan)) return false;
                break;
            case wire_tag(5, kLengthDelimited):
                if (!reader.read_bytes(&field) || !is_typed_contents(field, 2)) return false;
                keep(scan, &scan->contents, field);
                break;
            default:
                if (!reader.skip(tag, 1)) return false;
        }
    }
    input.dims.count = scan->dims.size() - input.dims.first;
    input.contents.count = scan->contents.size() - input.contents.first;
    if (scan->tensor_parameters.size() != input.parameters.first) {
        close_parameters(scan, &input.parameters);
    }
    keep(scan, &scan->inputs, input);
    return true;
}

bool scan_output(Span bytes, RequestScan* scan) {
    ScannedOutput output;
    output.parameters.first = scan->tensor_parameters.size();
    WireReader reader(bytes);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        switch (tag) {
            case wire_tag(1, kLengthDelimited):
                if (!read_text(&reader, &output.name)) return false;
                break;
            case wire_tag(2, kLengthDelimited):
                if (!read_tensor_parameter(&reader, scan)) return false;
                break;
            default:
                if (!reader.skip(tag, 1)) return false;
        }
    }
    if (scan->tensor_parameters.size() != output.parameters.first) {
        close_parameters(scan, &output.parameters);
    }
    keep(scan, &scan->outputs, output);
    return true;
}

// `field_begin`: where the field's tag starts.
bool scan_parameter(WireReader* reader, const std::uint8_t* field_begin, RequestScan* scan) {
    Span entry;
    Parameter parameter;
    if (!reader->read_bytes(&entry) || !read_parameter(entry, 1, &parameter)) return false;
    keep(scan, &scan->parameters, parameter);
    if (parameter.key == "priority" || parameter.key == "timeout") {
        const Span field = {field_begin, static_cast<std::size_t>(reader->at() - field_begin)};
        keep(scan, &scan->consumed_fields, field);
    }
    return true;
}

bool scan_fields(Span message, RequestScan* scan) {
    WireReader reader(message);
    while (!reader.done()) {
        const std::uint8_t* field_begin = reader.at();
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        Span field;
        switch (tag) {
            case wire_tag(1, kLengthDelimited):
                if (!read_text(&reader, &scan->model_name, &scan->model_name_cut)) return false;
                break;
            case wire_tag(2, kLengthDelimited):
                if (!read_text(&reader, &scan->model_version)) return false;
                break;
            case wire_tag(3, kLengthDelimited):
                if (!read_text(&reader, &scan->id, nullptr, &scan->whole_id)) return false;
                break;
            case wire_tag(4, kLengthDelimited):
                if (!scan_parameter(&reader, field_begin, scan)) return false;
                break;
            case wire_tag(5, kLengthDelimited):
                if (!reader.read_bytes(&field) || !scan_input(field, scan)) return false;
                break;
            case wire_tag(6, kLengthDelimited):
                if (!reader.read_bytes(&field) || !scan_output(field, scan)) return false;
                break;
            case wire_tag(7, kLengthDelimited):
                if (!reader.read_bytes(&field)) return false;
                // Surplus entries mean nothing, so they cannot overfill a request.
                if (scan->raw_contents.size() < kElementsMax) scan->raw_contents.push_back(field);
                break;
            default:
                if (!reader.skip(tag, 0)) return false;
        }
    }
    return true;
}

}  // namespace

void RequestScan::clear() {
    constexpr std::uint32_t kept = 256;
    model_name = model_version = id = whole_id = {};
    model_name_cut = false;
    parameters.clear_beyond(kept);
    consumed_fields.clear_beyond(kept);
    inputs.clear_beyond(kept);
    outputs.clear_beyond(kept);
    raw_contents.clear_beyond(kept);
    dims.clear_beyond(kept);
    tensor_parameters.clear_beyond(kept);
    contents.clear_beyond(kept);
    overfull = false;
}

ScanResult scan_request(Span message, RequestScan* scan) {
    scan->clear();
    if (!scan_fields(message, scan)) return ScanResult::kMalformed;
    if (scan->parameters.size() > 1) {
        scan->parameters.resize(
            normalize_parameters(scan->parameters.data(), scan->parameters.size()));
    }
    return ScanResult::kOk;
}

}  // namespace infersched::kserve
