// What Triton's gRPC front end checks: SetInferenceRequestMetadata, InferGRPCToInput and
// InferAllocatorPayload, and the sequence of all checks.
#include "kserve/request_fault.h"

#include <algorithm>

#include "base/error_details.h"
#include "kserve/parameter.h"
#include "kserve/region.h"
#include "kserve/typed_contents.h"

namespace infersched::kserve {

namespace {

Status examine_parameter(const Parameter& parameter) {
    const std::string_view key = parameter.key;
    const ParameterKind kind = parameter.kind;
    const std::string wrong = "invalid value type for " + quoted(key) + " parameter, expected ";
    if (key == "sequence_id") {
        if (kind == ParameterKind::kInt64) return Status();
        if (kind != ParameterKind::kString) {
            return invalid(wrong + "int64_param or string_param.");
        }
        if (until_nul(parameter.text).size() <= kSequenceIdBytesMax) return Status();
        return Status::error(StatusCode::kUnimplemented,
                             "string correlation ID cannot be longer than " +
                                 std::to_string(kSequenceIdBytesMax) + " characters");
    }
    if (key == "sequence_start" || key == "sequence_end") {
        return kind == ParameterKind::kBool ? Status() : invalid(wrong + "bool_param.");
    }
    if (key == "priority") {
        if (kind == ParameterKind::kUint64) return Status();
        if (kind != ParameterKind::kInt64) {
            return invalid(wrong + "int64_param or uint64_param.");
        }
        if (static_cast<std::int64_t>(parameter.bits) >= 0) return Status();
        return invalid("invalid value for 'priority', expected value >= 0.");
    }
    if (key == "timeout") {
        return kind == ParameterKind::kInt64 ? Status() : invalid(wrong + "int64_param.");
    }
    if (key.compare(0, 7, "triton_") == 0) {
        if (key != "triton_enable_empty_final_response") {
            return invalid(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
                "following keys starting with 'triton_' are allowed: "
                "triton_enable_empty_final_response");
        }
        return kind == ParameterKind::kBool ? Status() : invalid(wrong + "bool_param.");
    }
    if (kind != ParameterKind::kNone && kind != ParameterKind::kUint64) return Status();
    return invalid(wrong + "int64_param, bool_param, or string_param.");
}

}  // namespace

Status Examiner::examine_parameters() const {
    for (const Parameter& parameter : scan.parameters) {
        Status status = examine_parameter(parameter);
        if (!status.ok()) return status;
    }
    return Status();
}

// Where they are told in an order of ours, so many that no text has room for all of them.
void Examiner::hash_names_secretly() {
    constexpr std::size_t kHashedAsTritonMax = 256;
    if (scan.inputs.size() <= std::max(schema.inputs.size(), kHashedAsTritonMax)) return;
    // Where the scan lies is not known outside.
    inputs = Inputs(scan.inputs.size(), NameHash{reinterpret_cast<std::uintptr_t>(&scan)});
}

Status Examiner::add_inputs() {
    hash_names_secretly();
    for (const ScannedInput& scanned : scan.inputs) {
        Input input;
        input.data_type = data_type_text(parse_data_type(scanned.data_type));
        const std::int64_t* dims = scan.dims.data() + scanned.dims.first;
        input.dims.assign(dims, dims + scanned.dims.count);
        for (const TensorSchema& tensor : schema.inputs) {
            if (tensor.name == scanned.name) input.schema = &tensor;
        }
        if (!inputs.emplace(scanned.name, std::move(input)).second) {
            return invalid(prefix() + "input " + quoted(scanned.name) +
                           " already exists in request");
        }
    }
    return Status();
}

Status Examiner::add_contents(const ScannedInput& scanned, Input* input) {
    std::uint32_t filled = 0;
    for (std::uint32_t i = 0; i < scanned.contents.count; ++i) {
        filled |= filled_contents(scan.contents[scanned.contents.first + i]);
    }
    constexpr DataType kTypes[] = {DataType::kInvalid, DataType::kBool,   DataType::kInt32,
                                   DataType::kInt64,   DataType::kUint32, DataType::kUint64,
                                   DataType::kFp32,    DataType::kFp64,   DataType::kBytes};
    const DataType type = parse_data_type(scanned.data_type);
    const std::string refused = "unexpected explicit tensor data for input tensor " +
                                as_sent(scanned.name, scanned.name_cut) + " " + for_named_model();
    input->converted = BufferRef::make();
    for (std::uint32_t field = kBoolContents; field <= kBytesContents; ++field) {
        if ((filled >> field & 1) == 0) continue;
        if (input->converted->size() != 0) {
            return invalid_as_sent(refused + ", binary data was already supplied.");
        }
        if (contents_field(type) != field) {
            return invalid_as_sent(refused + " of type " + quoted(data_type_text(kTypes[field])) +
                                   ", expected datatype " + quoted(data_type_text(type)));
        }
        for (std::uint32_t i = 0; i < scanned.contents.count; ++i) {
            const Span contents = scan.contents[scanned.contents.first + i];
            const std::size_t before = input->converted->size();
            if (!raw_bytes_within(contents, field, type, converted_bytes_left) ||
                !append_raw(contents, field, type, input->converted.get())) {
                return Status::error(StatusCode::kResourceExhausted, "out of memory");
            }
            converted_bytes_left -= input->converted->size() - before;
        }
    }
    input->data = input->converted.span();
    return Status();
}

Status Examiner::add_data() {
    std::uint32_t raw_next = 0;
    for (const ScannedInput& scanned : scan.inputs) {
        Input& input = inputs.find(std::string(scanned.name))->second;
        RegionUse region;
        Status placed = read_region(scan, scanned.name, scanned.parameters, &region);
        if (!placed.ok()) return placed;
        if (region.used) {
            if (scanned.contents.count == 0) {
                has_region = true;
                return Status();
            }
            return invalid_as_sent(
                "unexpected 'content' provided when using shared memory for input "
                "tensor " +
                as_sent(scanned.name, scanned.name_cut) + " " + for_named_model());
        }
        if (scanned.contents.count != 0) {
            if (!scan.raw_contents.empty()) {
                return invalid_as_sent(
                    "contents field must not be specified when using raw_input_contents for " +
                    as_sent(scanned.name, scanned.name_cut) + " " + for_named_model());
            }
            Status status = add_contents(scanned, &input);
            if (!status.ok()) return status;
        } else if (raw_next < scan.raw_contents.size()) {
            input.data = scan.raw_contents[raw_next++];
        } else {
            return invalid_as_sent("unable to find data for input tensor " +
                                   as_sent(scanned.name, scanned.name_cut) + " " +
                                   for_named_model() + " in request.");
        }
    }
    return Status();
}

Status Examiner::examine_requested(const ScannedOutput& output) {
    RegionUse region;
    Status status = read_region(scan, output.name, output.parameters, &region);
    if (!status.ok()) return status;
    const Parameter* found = find_parameter(scan.tensor_parameters.data() + output.parameters.first,
                                            output.parameters.count, "classification");
    if (found == nullptr) {
        has_region = region.used;
        return Status();
    }
    if (found->kind != ParameterKind::kInt64) {
        return invalid("invalid value type for 'classification' parameter, expected int64_param");
    }
    if (static_cast<std::int64_t>(found->bits) <= 0) {
        return invalid("invalid value for 'classification' parameter, expected >= 0");
    }
    if (!region.used) return Status();
    return invalid("output can't set both 'shared_memory_region' and 'classification'");
}

// What Triton finds when the answer is ready, in the order of its outputs.
Status Examiner::examine_class_results() const {
    for (const TensorSchema& tensor : schema.outputs) {
        for (const ScannedOutput& output : scan.outputs) {
            if (output.name != tensor.name || has_class_results(tensor.data_type)) continue;
            const Parameter* parameters = scan.tensor_parameters.data() + output.parameters.first;
            if (!find_parameter(parameters, output.parameters.count, "classification")) continue;
            return invalid("class result not available for output due to unsupported type " +
                           quoted(data_type_text(tensor.data_type)));
        }
    }
    return Status();
}

// Each input by itself, in the order of the container.
Status Examiner::examine_tensors() {
    Status status;
    for (const auto& [name, input] : inputs) {
        bad_field = "inputs['" + name + "']";
        status = examine_type_and_shape(name, input);
        if (status.ok()) status = examine_size(name, input);
        if (!status.ok()) return status;
    }
    for (const auto& [name, input] : inputs) {
        bad_field = "inputs['" + name + "']";
        status = examine_last_string(name, input);
        if (!status.ok()) return status;
    }
    return status;
}

// Not a check of Triton's: its python backend never answers such a request, whose slot would stay
// taken for ever.
Status Examiner::examine_emptiness() {
    if (schema.max_batch_size == 0 || batch_size != 0) return Status();
    for (const auto& [name, input] : inputs) {
        if (input.schema->shape_tensor || !input.data.empty()) continue;
        bad_field = "inputs['" + name + "']";
        return invalid(prefix() + "request of zero rows has no data for input " + quoted(name) +
                       " " + for_model());
    }
    return Status();
}

Status Examiner::examine() {
    bad_field = "parameters";
    Status status = examine_parameters();
    if (!status.ok()) return status;
    bad_field = "inputs";
    status = add_inputs();
    if (status.ok()) status = add_data();
    if (!status.ok()) return status;
    bad_field = "outputs";
    // Triton looks the region up before it looks at anything behind it.
    if (has_region) return examine_class_results();
    for (const ScannedOutput& output : scan.outputs) {
        if (status.ok() && !has_region) status = examine_requested(output);
    }
    if (status.ok() && has_region) return examine_class_results();
    if (status.ok()) status = examine_outputs();
    if (!status.ok()) return status;
    bad_field = "inputs";
    status = examine_input_names();
    if (status.ok()) status = find_batch_size();
    if (status.ok()) status = examine_batch_size();
    if (status.ok()) status = examine_tensors();
    if (status.ok()) status = examine_emptiness();
    if (!status.ok()) return status;
    bad_field = "outputs";
    return examine_class_results();
}

std::string request_prefix(std::string_view id) {
    return "[request id: " + std::string(id.empty() ? "<id_unknown>" : id) + "] ";
}

Status explain_fault(const RequestScan& scan, const ModelSchema& schema, std::int64_t rows_max,
                     std::size_t converted_bytes_max) {
    Examiner examiner{scan, schema, rows_max, converted_bytes_max, {}, 0, false, {}};
    Status status = examiner.examine();
    if (status.code == StatusCode::kInvalidArgument)
        status.details = ErrorDetails()
                             .bad_request(examiner.bad_field, status.message)
                             .serialise(status.code, status.message);
    return status;
}

}  // namespace infersched::kserve
