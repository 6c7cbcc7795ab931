// Which inputs of a request are padded or filled in, and their layout.
#include "kserve/padding.h"

#include <algorithm>

#include "kserve/request_check.h"

namespace infersched::kserve {

namespace {

// A batch is not padded beyond this: clients choose the other dimensions.
constexpr std::uint64_t kBatchBytesMax = 1 << 30;
constexpr std::size_t kPatternBytes = 4096;

std::string padding_element(const TensorSchema& tensor) {
    const std::string& value = tensor.padding.value;
    if (tensor.data_type == DataType::kBytes) {
        const auto length = static_cast<std::uint32_t>(value.size());
        return std::string(reinterpret_cast<const char*>(&length), 4) + value;
    }
    const std::size_t width = element_bytes(tensor.data_type);
    return value.size() == width ? value : std::string(width, '\0');
}

CheckedInput* find_checked(CheckedRequest* checked, std::uint32_t schema_index) {
    for (CheckedInput& input : checked->inputs) {
        if (input.schema == schema_index) return &input;
    }
    return nullptr;
}

std::uint32_t find_input(const ModelSchema& schema, std::string_view name) {
    std::uint32_t i = 0;
    while (i < schema.inputs.size() && schema.inputs[i].name != name) ++i;
    return i;
}

// Whether a whole batch of rows of this shape stays within bounds. `has_data` is false of tensors
// without elements: there a client may claim any other dimension.
bool fits(const ModelSchema& schema, const TensorSchema& tensor, const std::int64_t* dims,
          std::int64_t padded, bool has_data) {
    std::uint64_t bytes = padding_element(tensor).size();
    bool wraps = __builtin_mul_overflow(bytes, schema.max_batch_size, &bytes);
    for (std::uint32_t i = 0; i < tensor.dims.size() && !wraps; ++i) {
        const bool padded_axis = i == tensor.padding.axis;
        if (!padded_axis && !has_data && tensor.dims[i] < 0) return false;
        wraps = __builtin_mul_overflow(bytes, padded_axis ? padded : dims[i], &bytes);
    }
    return !wraps && bytes <= kBatchBytesMax;
}

bool plan_input(const RequestScan& scan, const ModelSchema& schema, CheckedInput* input) {
    const TensorSchema& tensor = schema.inputs[input->schema];
    const Padding& padding = tensor.padding;
    const Range range = scan.inputs[input->scanned].dims;
    if (padding.buckets.empty() || padding.axis + 1 >= range.count) return true;
    const std::int64_t* dims = scan.dims.data() + range.first;
    const std::int64_t length = dims[padding.axis + 1];
    if (length > 0xffffffff) return false;
    const auto bucket = std::lower_bound(padding.buckets.begin(), padding.buckets.end(), length);
    const bool padded = bucket != padding.buckets.end() &&
                        fits(schema, tensor, dims + 1, *bucket, !input->data.empty());
    input->padding.padded = padded ? *bucket : length;
    input->padding.length = static_cast<std::uint32_t>(length);
    input->padding.axis = padding.axis;
    return true;
}

bool can_hold(DataType type, std::uint32_t length) {
    switch (type) {
        case DataType::kUint8:
            return length <= 0xff;
        case DataType::kInt8:
            return length <= 0x7f;
        case DataType::kUint16:
            return length <= 0xffff;
        case DataType::kInt16:
            return length <= 0x7fff;
        case DataType::kInt32:
            return length <= 0x7fffffff;
        case DataType::kUint32:
        case DataType::kUint64:
        case DataType::kInt64:
        case DataType::kFp32:
        case DataType::kFp64:
            return true;
        default:
            return false;
    }
}

void insert(CheckedRequest* checked, std::uint32_t schema_index, const InputPadding& padding) {
    CheckedInput filled{};
    filled.schema = schema_index;
    filled.padding = padding;
    std::uint32_t at = checked->inputs.size();
    checked->inputs.push_back(filled);
    for (; at != 0 && checked->inputs[at - 1].schema > schema_index; --at) {
        checked->inputs[at] = checked->inputs[at - 1];
    }
    checked->inputs[at] = filled;
}

// A mask that the client sent is padded along with what it masks. One that has another length
// stays as it is, and so does its tensor.
void plan_sent_mask(const RequestScan& scan, CheckedInput* mask, CheckedInput* source) {
    if (mask->padding.padded >= 0) return;
    const Range range = scan.inputs[mask->scanned].dims;
    if (range.count == 2 && scan.dims[range.first + 1] == source->padding.length) {
        mask->padding = source->padding;
        mask->padding.axis = 0;
    } else {
        source->padding.padded = source->padding.length;
    }
}

bool plan_fills(const RequestScan& scan, const ModelSchema& schema, std::uint32_t source_index,
                CheckedRequest* checked) {
    const Padding& padding = schema.inputs[source_index].padding;
    const std::uint32_t mask = find_input(schema, padding.mask_input);
    const std::uint32_t length = find_input(schema, padding.length_input);
    CheckedInput* source = find_checked(checked, source_index);
    if (source == nullptr || source->padding.padded < 0) return true;
    if (mask != schema.inputs.size()) {
        CheckedInput* sent = find_checked(checked, mask);
        if (sent != nullptr) plan_sent_mask(scan, sent, source);
        // Of data that is not there any length can be claimed.
        const bool bounded = source->padding.padded <= padding.buckets.back();
        if (sent == nullptr && !bounded && source->data.empty()) return false;
    }
    InputPadding fill = source->padding;
    fill.source = source_index;
    if (mask != schema.inputs.size() && find_checked(checked, mask) == nullptr) {
        fill.fill = Fill::kMask;
        insert(checked, mask, fill);
    }
    if (length != schema.inputs.size() && find_checked(checked, length) == nullptr) {
        if (!can_hold(schema.inputs[length].data_type, fill.length)) return false;
        fill.fill = Fill::kLength;
        insert(checked, length, fill);
    }
    return true;
}

}  // namespace

bool has_padding(const ModelSchema& schema) {
    for (const TensorSchema& input : schema.inputs) {
        if (!input.padding.buckets.empty()) return true;
    }
    return false;
}

bool is_filled_in(const ModelSchema& schema, std::string_view input) {
    for (const TensorSchema& source : schema.inputs) {
        const Padding& padding = source.padding;
        if (padding.buckets.empty()) continue;
        if (padding.mask_input == input || padding.length_input == input) return true;
    }
    return false;
}

bool plan_padding(const RequestScan& scan, const ModelSchema& schema, CheckedRequest* checked) {
    for (CheckedInput& input : checked->inputs) {
        if (!plan_input(scan, schema, &input)) return false;
    }
    for (std::uint32_t i = 0; i < schema.inputs.size(); ++i) {
        if (schema.inputs[i].padding.buckets.empty()) continue;
        if (!plan_fills(scan, schema, i, checked)) return false;
    }
    return true;
}

std::unique_ptr<PadLayout> make_layout(const TensorSchema& tensor, const InputPadding& padding,
                                       const std::int64_t* dims, std::size_t rank) {
    auto layout = std::make_unique<PadLayout>();
    layout->fill = padding.fill;
    layout->length = static_cast<std::uint32_t>(padding.padded);
    layout->data_type = tensor.data_type;
    for (std::size_t i = 0; i < rank && padding.fill == Fill::kNone; ++i) {
        if (i < padding.axis) layout->outer *= static_cast<std::uint64_t>(dims[i]);
        if (i > padding.axis) layout->inner *= static_cast<std::uint64_t>(dims[i]);
    }
    const std::string element = padding_element(tensor);
    layout->unit_bytes = element.size();
    layout->pattern = BufferRef::make();
    const std::size_t count = std::max<std::size_t>(kPatternBytes / element.size(), 1);
    for (std::size_t i = 0; i < count; ++i) {
        if (!layout->pattern->append(element.data(), element.size())) std::abort();
    }
    return layout;
}

}  // namespace infersched::kserve
