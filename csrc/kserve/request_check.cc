#include "kserve/request_check.h"

#include <algorithm>

#include "kserve/hash.h"
#include "kserve/parameter.h"
#include "kserve/region.h"
#include "kserve/typed_contents.h"

namespace infersched::kserve {

namespace {

constexpr std::int64_t kRowsLimit = 0x7fffffff;
constexpr std::uint64_t kAddressableBytes = 0x7fffffffffffffff;
constexpr std::size_t kPointerBytes = 8;  // what a string takes in numpy, beside its bytes

bool is_forwardable(const Parameter& parameter) {
    return parameter.kind != ParameterKind::kNone && parameter.kind != ParameterKind::kUint64;
}

bool starts_with(std::string_view text, std::string_view prefix) {
    return text.size() >= prefix.size() && text.compare(0, prefix.size(), prefix) == 0;
}

// Integers and strings are different ids even where they look the same.
std::uint64_t sequence_key(const Parameter& id) {
    constexpr std::uint64_t kIntegerSeed = 1;
    constexpr std::uint64_t kTextSeed = 2;
    std::uint64_t key = 0;
    if (id.kind == ParameterKind::kString) {
        const std::string_view text = until_nul(id.text);
        if (text.empty()) return 0;
        key = hash_bytes(span_of(text), kTextSeed);
    } else {
        if (id.bits == 0) return 0;
        key = hash_bytes({reinterpret_cast<const std::uint8_t*>(&id.bits), 8}, kIntegerSeed);
    }
    return key == 0 ? 1 : key;
}

bool check_sequence_parameter(const Parameter& parameter, CheckedRequest* checked) {
    SchedulingParameters* scheduling = &checked->scheduling;
    if (parameter.key == "sequence_id") {
        scheduling->has_sequence = true;
        scheduling->sequence = sequence_key(parameter);
        if (scheduling->sequence != 0) checked->sequence_id = &parameter;
        if (parameter.kind == ParameterKind::kInt64) return true;
        return parameter.kind == ParameterKind::kString &&
               until_nul(parameter.text).size() <= kSequenceIdBytesMax;
    }
    const bool begins = parameter.key == "sequence_start";
    if (!begins && parameter.key != "sequence_end") return is_forwardable(parameter);
    scheduling->has_sequence = true;
    (begins ? scheduling->sequence_start : scheduling->sequence_end) = parameter.bits != 0;
    return parameter.kind == ParameterKind::kBool;
}

bool check_parameter(const Parameter& parameter, CheckedRequest* checked) {
    SchedulingParameters* scheduling = &checked->scheduling;
    const ParameterKind kind = parameter.kind;
    if (parameter.key == "priority") {
        scheduling->priority = parameter.bits;
        if (kind == ParameterKind::kUint64) return true;
        return kind == ParameterKind::kInt64 && static_cast<std::int64_t>(parameter.bits) >= 0;
    }
    if (parameter.key == "timeout") {
        // Triton reads it as unsigned: a negative one is no limit at all.
        scheduling->timeout_us =
            std::max<std::int64_t>(static_cast<std::int64_t>(parameter.bits), 0);
        return kind == ParameterKind::kInt64;
    }
    if (starts_with(parameter.key, "sequence_")) {
        return check_sequence_parameter(parameter, checked);
    }
    if (starts_with(parameter.key, "triton_")) {
        scheduling->wants_empty_final = parameter.bits != 0;
        return parameter.key == "triton_enable_empty_final_response" &&
               kind == ParameterKind::kBool;
    }
    return is_forwardable(parameter);
}

// The index of `name`; `guess` first, since clients send tensors in the model's order.
template <typename Tensors>
std::uint32_t find_tensor(const Tensors& tensors, std::string_view name, std::uint32_t guess) {
    if (guess < tensors.size() && tensors[guess].name == name) return guess;
    for (std::uint32_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].name == name) return i;
    }
    return static_cast<std::uint32_t>(tensors.size());
}

bool convert_contents(const RequestScan& scan, const ScannedInput& input, DataType type,
                      CheckedInput* checked, CheckedRequest* request) {
    const std::uint32_t field = contents_field(type);
    std::uint32_t filled = 0;
    for (std::uint32_t i = 0; i < input.contents.count; ++i) {
        filled |= filled_contents(scan.contents[input.contents.first + i]);
    }
    if (filled != 0 && filled != 1u << field) return false;
    if (!request->converted) request->converted = BufferRef::make();
    Buffer* const converted = request->converted.get();
    checked->typed = true;
    checked->converted_at = converted->size();
    for (std::uint32_t i = 0; i < input.contents.count && filled != 0; ++i) {
        const Span contents = scan.contents[input.contents.first + i];
        const std::size_t room = request->converted_bytes_max - converted->size();
        if (!raw_bytes_within(contents, field, type, room)) return false;
        if (!append_raw(contents, field, type, converted)) return false;
    }
    checked->data.size = converted->size() - checked->converted_at;
    return true;
}

// What a shape comes to.
struct Extent {
    std::uint64_t elements = 0;
    // Without elements, but of other dimensions so large that a batch of many such rows could not
    // be addressed.
    bool alone = false;
};

// The extent of `dims` when they fit the model; the first one is the batch when `batched`.
bool check_dims(const std::int64_t* dims, std::uint32_t rank, const TensorSchema& tensor,
                bool batched, Extent* extent) {
    const std::uint32_t lead = batched ? 1 : 0;
    if (rank != tensor.dims.size() + lead) return false;
    // A dimension of zero does not excuse the others: numpy, and with it the process of a python
    // model, fails on a shape whose other dimensions cannot be addressed.
    std::uint64_t count = 1;
    bool empty = rank == 0;
    for (std::uint32_t i = 0; i < rank; ++i) {
        if (dims[i] < 0) return false;
        empty = empty || dims[i] == 0;
        if (i >= lead && tensor.dims[i - lead] != -1 && tensor.dims[i - lead] != dims[i]) {
            return false;
        }
        const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(dims[i], 1));
        if (__builtin_mul_overflow(count, factor, &count)) return false;
    }
    const std::size_t each = element_bytes(tensor.data_type);
    const std::uint64_t count_max = kAddressableBytes / (each == 0 ? kPointerBytes : each);
    if (count > count_max) return false;
    extent->elements = empty ? 0 : count;
    const auto rows = batched ? static_cast<std::uint64_t>(std::max<std::int64_t>(dims[0], 1)) : 1;
    extent->alone = empty && count / rows > count_max / kRowsLimit;
    return true;
}

bool check_data(Span data, DataType type, std::uint64_t elements) {
    if (type == DataType::kBytes) return is_bytes_tensor(data, elements);
    std::uint64_t bytes = 0;
    return !__builtin_mul_overflow(elements, element_bytes(type), &bytes) && bytes == data.size;
}

bool assign_data(const RequestScan& scan, const ScannedInput& input, DataType type,
                 std::uint32_t* raw_next, CheckedInput* checked, CheckedRequest* request) {
    if (input.contents.count != 0) {
        if (!scan.raw_contents.empty()) return false;
        return convert_contents(scan, input, type, checked, request);
    }
    if (*raw_next >= scan.raw_contents.size()) return false;
    checked->data = scan.raw_contents[(*raw_next)++];
    return true;
}

// Where the converted bytes lie is known only once the buffer has stopped growing.
void settle_converted(CheckedRequest* checked) {
    if (!checked->converted) return;
    for (CheckedInput& input : checked->inputs) {
        if (input.typed) input.data.data = checked->converted->data() + input.converted_at;
    }
}

// Finds schema, data and order of the inputs.
bool match_inputs(const RequestScan& scan, const ModelSchema& schema, CheckedRequest* checked) {
    std::uint32_t raw_next = 0;
    bool sorted = true;
    for (std::uint32_t i = 0; i < scan.inputs.size(); ++i) {
        const ScannedInput& input = scan.inputs[i];
        CheckedInput found{};
        found.scanned = i;
        found.schema = find_tensor(schema.inputs, input.name, i);
        if (found.schema == schema.inputs.size()) return false;
        const DataType type = schema.inputs[found.schema].data_type;
        if (input.data_type != data_type_text(type) || type == DataType::kInvalid) return false;
        if (!assign_data(scan, input, type, &raw_next, &found, checked)) return false;
        sorted = sorted && (i == 0 || checked->inputs.back().schema < found.schema);
        checked->inputs.push_back(found);
    }
    settle_converted(checked);
    if (sorted) return true;
    const auto by_schema = [](const CheckedInput& a, const CheckedInput& b) {
        return a.schema < b.schema;
    };
    std::sort(checked->inputs.begin(), checked->inputs.end(), by_schema);
    for (std::uint32_t i = 1; i < checked->inputs.size(); ++i) {
        if (checked->inputs[i - 1].schema == checked->inputs[i].schema) return false;
    }
    return true;
}

bool check_inputs(const RequestScan& scan, const ModelSchema& schema, CheckedRequest* checked) {
    std::uint32_t required = 0;
    for (const TensorSchema& input : schema.inputs) required += input.optional ? 0 : 1;
    if (scan.inputs.size() < required) {
        for (const TensorSchema& input : schema.inputs) {
            required -= !input.optional && is_filled_in(schema, input.name) ? 1 : 0;
        }
    }
    if (scan.inputs.size() > schema.inputs.size() || scan.inputs.size() < required) return false;
    if (!match_inputs(scan, schema, checked)) return false;
    std::int64_t rows = 0;
    std::uint64_t bytes = 0;
    for (const CheckedInput& input : checked->inputs) {
        const TensorSchema& tensor = schema.inputs[input.schema];
        const bool batched = schema.max_batch_size > 0 && !tensor.shape_tensor;
        const Range range = scan.inputs[input.scanned].dims;
        const std::int64_t* dims = scan.dims.data() + range.first;
        Extent extent;
        if (!check_dims(dims, range.count, tensor, batched, &extent)) return false;
        if (!check_data(input.data, tensor.data_type, extent.elements)) return false;
        if (tensor.shape_tensor || tensor.ragged) checked->mergeable = false;
        checked->alone = checked->alone || extent.alone;
        if (!batched) continue;
        bytes += input.data.size;
        if (rows == 0) rows = dims[0];
        if (rows != dims[0] || rows < 1 || rows > kRowsLimit) return false;
    }
    if (rows == 0) checked->mergeable = false;
    // Some dozens of bytes must not become millions of executions.
    if (bytes == 0 && rows > schema.max_batch_size) checked->mergeable = false;
    checked->rows = rows == 0 ? 1 : static_cast<std::uint32_t>(rows);
    return true;
}

bool check_classification(const Parameter* parameters, std::uint32_t count) {
    const Parameter* found = find_parameter(parameters, count, "classification");
    return found == nullptr ||
           (found->kind == ParameterKind::kInt64 && static_cast<std::int64_t>(found->bits) > 0);
}

bool check_outputs(const RequestScan& scan, const ModelSchema& schema, CheckedRequest* checked) {
    bool sorted = true;
    for (std::uint32_t i = 0; i < scan.outputs.size(); ++i) {
        const ScannedOutput& output = scan.outputs[i];
        const std::uint32_t found = find_tensor(schema.outputs, output.name, i);
        if (found == schema.outputs.size()) return false;
        sorted = sorted && (i == 0 || checked->outputs.back() < found);
        checked->outputs.push_back(found);
        if (output.parameters.count == 0) continue;
        const Parameter* parameters = scan.tensor_parameters.data() + output.parameters.first;
        if (!check_classification(parameters, output.parameters.count)) return false;
        checked->output_parameters.push_back(&output);
    }
    if (sorted) return true;
    // An output asked for twice is one output; which parameters then count is Triton's affair.
    std::sort(checked->outputs.begin(), checked->outputs.end());
    const auto end = std::unique(checked->outputs.begin(), checked->outputs.end());
    const auto count = static_cast<std::uint32_t>(end - checked->outputs.begin());
    if (count != checked->outputs.size() && !checked->output_parameters.empty()) {
        checked->mergeable = false;
    }
    checked->outputs.resize(count);
    std::sort(checked->output_parameters.begin(), checked->output_parameters.end(),
              [](const ScannedOutput* a, const ScannedOutput* b) { return a->name < b->name; });
    return true;
}

bool check_rows(const ModelSchema& schema, const CheckedRequest& checked) {
    if (schema.max_batch_size == 0) return true;
    const std::int64_t limit = checked.mergeable ? schema.rows_max : schema.max_batch_size;
    return limit == 0 || checked.rows <= limit;
}

// The names of all regions, each once.
void find_regions(const RequestScan& scan, CheckedRequest* checked) {
    RegionUse region;
    const auto find = [&](std::string_view name, Range parameters) {
        const Status status = read_region(scan, name, parameters, &region);
        if (status.ok() && region.used) checked->regions.push_back(region.name);
    };
    for (const ScannedInput& input : scan.inputs) find(input.name, input.parameters);
    for (const ScannedOutput& output : scan.outputs) find(output.name, output.parameters);
    std::sort(checked->regions.begin(), checked->regions.end());
    const auto* end = std::unique(checked->regions.begin(), checked->regions.end());
    checked->regions.resize(static_cast<std::uint32_t>(end - checked->regions.begin()));
}

// Rows of a request whose tensors only Triton can judge, for accounting.
std::uint32_t claimed_rows(const RequestScan& scan, const ModelSchema& schema) {
    if (schema.max_batch_size == 0 || scan.inputs.empty()) return 1;
    const Range dims = scan.inputs[0].dims;
    if (dims.count == 0) return 1;
    const std::int64_t rows = scan.dims[dims.first];
    return static_cast<std::uint32_t>(
        std::clamp<std::int64_t>(rows, 1, std::min(schema.max_batch_size, kRowsLimit)));
}

}  // namespace

void CheckedRequest::clear() {
    rows = 1;
    mergeable = alone = padded = false;
    scheduling = SchedulingParameters();
    sequence_id = nullptr;
    regions.clear();
    inputs.clear();
    outputs.clear();
    output_parameters.clear();
    converted = BufferRef();
}

bool is_bytes_tensor(Span data, std::uint64_t count) {
    std::size_t at = 0;
    while (count != 0) {
        if (data.size - at < 4) return false;
        std::uint32_t length = 0;
        std::memcpy(&length, data.data + at, 4);
        at += 4;
        if (data.size - at < length) return false;
        at += length;
        --count;
    }
    return at == data.size;
}

bool asks_impossible_classes(const RequestScan& scan, const ModelSchema& schema) {
    for (const ScannedOutput& output : scan.outputs) {
        const Parameter* parameters = scan.tensor_parameters.data() + output.parameters.first;
        if (!find_parameter(parameters, output.parameters.count, "classification")) continue;
        const std::uint32_t found = find_tensor(schema.outputs, output.name, 0);
        if (found == schema.outputs.size()) continue;
        if (!has_class_results(schema.outputs[found].data_type)) return true;
    }
    return false;
}

bool check_request(const RequestScan& scan, const ModelSchema& schema, CheckedRequest* checked) {
    checked->clear();
    if (scan.overfull) return false;
    if (!scan.tensor_parameters.empty() && asks_impossible_classes(scan, schema)) return false;
    for (const Parameter& parameter : scan.parameters) {
        if (!check_parameter(parameter, checked)) return false;
    }
    if (uses_shared_memory(scan)) {
        // Only explain_fault judges these: what Triton refuses before it looks a region up.
        checked->rows = claimed_rows(scan, schema);
        find_regions(scan, checked);
        return false;
    }
    checked->mergeable = schema.merge && schema.max_batch_size > 0 && !schema.decoupled &&
                         !schema.sequence && !checked->scheduling.has_sequence;
    if (!check_outputs(scan, schema, checked) || !check_inputs(scan, schema, checked)) {
        return false;
    }
    const bool fills = checked->mergeable && has_padding(schema);
    if (checked->alone) checked->mergeable = false;
    if (!check_rows(schema, *checked)) return false;
    // What goes alone is not padded, but refused where it could not be.
    if (fills && !plan_padding(scan, schema, checked)) return false;
    checked->padded = fills && checked->mergeable;
    return true;
}

}  // namespace infersched::kserve
