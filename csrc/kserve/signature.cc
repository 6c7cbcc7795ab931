#include "kserve/signature.h"

#include <algorithm>

#include "kserve/hash.h"
#include "kserve/parameter.h"
#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

// Unused signatures are dropped when the table has doubled since the last time, but not below this.
constexpr std::size_t kSweepCountMin = 256;
constexpr std::size_t kSweepBytesMin = 1 << 20;

void append_number(std::string* key, std::uint64_t number) {
    std::uint8_t bytes[10];
    const std::uint8_t* end = put_varint(bytes, number);
    key->append(reinterpret_cast<char*>(bytes), static_cast<std::size_t>(end - bytes));
}

void append_text(std::string* key, std::string_view text) {
    append_number(key, text.size());
    key->append(text);
}

bool is_consumed(const Parameter& parameter) {
    return parameter.key == "priority" || parameter.key == "timeout";
}

std::string parameter_fields(std::uint8_t tag, const Parameter* parameters, std::uint32_t count) {
    std::string fields;
    for (std::uint32_t i = 0; i < count; ++i) {
        if (!is_consumed(parameters[i])) append_parameter(&fields, tag, parameters[i]);
    }
    return fields;
}

// Parameters of a tensor; there `priority` and `timeout` mean nothing special.
std::string tensor_parameter_fields(std::uint8_t tag, const RequestScan& scan, Range range) {
    std::string fields;
    for (std::uint32_t i = 0; i < range.count; ++i) {
        append_parameter(&fields, tag, scan.tensor_parameters[range.first + i]);
    }
    return fields;
}

// Dimension `i` of the input's rows in a batch (0 = the first after the batch dimension).
std::uint64_t batch_dim(const RequestScan& scan, const CheckedInput& input, std::uint32_t i) {
    if (input.padding.padded >= 0 && i == input.padding.axis) {
        return static_cast<std::uint64_t>(input.padding.padded);
    }
    return static_cast<std::uint64_t>(scan.dims[scan.inputs[input.scanned].dims.first + 1 + i]);
}

// What padding adds to the identity of a batch.
void append_padding(const ModelSchema& schema, const CheckedRequest& checked, std::string* key) {
    for (const CheckedInput& input : checked.inputs) {
        append_number(key, static_cast<std::uint64_t>(input.padding.padded + 1));
        key->push_back(static_cast<char>(input.padding.fill));
        append_number(key, input.padding.axis);
        append_text(key, schema.inputs[input.schema].padding.value);
    }
    for (const TensorSchema& output : schema.outputs) {
        append_text(key, output.trim_to);
        append_number(key, output.trim_axis);
    }
}

void build_key(const RequestScan& scan, const ModelSchema& schema, const CheckedRequest& checked,
               std::string_view metadata, std::string* key) {
    key->clear();
    key->push_back(static_cast<char>((checked.mergeable ? 1 : 0) | (checked.padded ? 2 : 0)));
    append_text(key, schema.name);
    append_text(key, schema.version);
    if (!checked.mergeable) return;
    if (checked.padded) append_padding(schema, checked, key);
    append_number(key, checked.inputs.size());
    for (const CheckedInput& input : checked.inputs) {
        const TensorSchema& tensor = schema.inputs[input.schema];
        append_text(key, tensor.name);
        key->push_back(static_cast<char>(tensor.data_type));
        if (input.padding.fill != Fill::kNone) continue;
        const ScannedInput& scanned = scan.inputs[input.scanned];
        append_number(key, scanned.dims.count);
        for (std::uint32_t i = 1; i < scanned.dims.count; ++i) {
            append_number(key, batch_dim(scan, input, i - 1));
        }
        append_number(key, scanned.parameters.count);
        if (scanned.parameters.count == 0) continue;
        append_text(
            key, tensor_parameter_fields(wire_tag(4, kLengthDelimited), scan, scanned.parameters));
    }
    append_number(key, schema.outputs.size());
    for (const TensorSchema& output : schema.outputs) append_text(key, output.name);
    append_number(key, checked.output_parameters.size());
    for (const ScannedOutput* output : checked.output_parameters) {
        append_text(key, output->name);
        append_text(
            key, tensor_parameter_fields(wire_tag(2, kLengthDelimited), scan, output->parameters));
    }
    append_text(key, metadata);
    if (scan.parameters.empty()) return;
    key->append(parameter_fields(wire_tag(4, kLengthDelimited), scan.parameters.data(),
                                 scan.parameters.size()));
}

SignatureInput make_input(const RequestScan& scan, const TensorSchema& tensor,
                          const CheckedInput& checked) {
    SignatureInput input;
    std::vector<std::int64_t> dims;
    if (checked.padding.fill == Fill::kNone) {
        const ScannedInput& scanned = scan.inputs[checked.scanned];
        for (std::uint32_t i = 1; i < scanned.dims.count; ++i) {
            dims.push_back(static_cast<std::int64_t>(batch_dim(scan, checked, i - 1)));
        }
        input.parameters =
            tensor_parameter_fields(wire_tag(4, kLengthDelimited), scan, scanned.parameters);
    } else {
        dims.push_back(checked.padding.fill == Fill::kMask ? checked.padding.padded : 1);
    }
    append_field(&input.head, wire_tag(1, kLengthDelimited), tensor.name);
    append_field(&input.head, wire_tag(2, kLengthDelimited), data_type_text(tensor.data_type));
    input.is_bytes = tensor.data_type == DataType::kBytes;
    input.elements_per_row = 1;
    for (const std::int64_t dim : dims) {
        append_number(&input.tail_dims, static_cast<std::uint64_t>(dim));
        input.elements_per_row *= static_cast<std::uint64_t>(dim);
    }
    input.row_bytes = input.elements_per_row * element_bytes(tensor.data_type);
    if (checked.padding.padded >= 0) {
        input.layout = make_layout(tensor, checked.padding, dims.data(), dims.size());
    }
    return input;
}

bool has_classification(const RequestScan& scan, const CheckedRequest& checked,
                        std::string_view output) {
    for (const ScannedOutput* scanned : checked.output_parameters) {
        if (scanned->name != output) continue;
        const Parameter* parameters = scan.tensor_parameters.data() + scanned->parameters.first;
        return find_parameter(parameters, scanned->parameters.count, "classification") != nullptr;
    }
    return false;
}

void make_trims(const RequestScan& scan, const ModelSchema& schema, const CheckedRequest& checked,
                Signature* signature) {
    for (std::uint32_t o = 0; o < schema.outputs.size(); ++o) {
        const TensorSchema& output = schema.outputs[o];
        // Class results have other dimensions.
        if (output.trim_to.empty() || has_classification(scan, checked, output.name)) continue;
        for (std::uint32_t i = 0; i < checked.inputs.size(); ++i) {
            const CheckedInput& input = checked.inputs[i];
            const bool padded = input.padding.padded >= 0 && input.padding.fill == Fill::kNone;
            if (!padded || schema.inputs[input.schema].name != output.trim_to) continue;
            signature->trims.push_back({o, i, output.trim_axis});
        }
    }
}

void make_outputs(const RequestScan& scan, const ModelSchema& schema, const CheckedRequest& checked,
                  Signature* signature) {
    for (const TensorSchema& output : schema.outputs) {
        std::string body;
        append_field(&body, wire_tag(1, kLengthDelimited), output.name);
        for (const ScannedOutput* scanned : checked.output_parameters) {
            if (scanned->name != output.name) continue;
            body +=
                tensor_parameter_fields(wire_tag(2, kLengthDelimited), scan, scanned->parameters);
        }
        std::string field;
        append_field(&field, wire_tag(6, kLengthDelimited), body);
        signature->output_names.push_back(output.name);
        signature->output_fields.push_back(std::move(field));
    }
}

bool rows_differ(const ModelSchema& schema) {
    return std::any_of(schema.inputs.begin(), schema.inputs.end(), [](const TensorSchema& input) {
        const auto varies = [](std::int64_t dim) { return dim < 0; };
        return std::any_of(input.dims.begin(), input.dims.end(), varies);
    });
}

SignatureRef make_signature(const RequestScan& scan, const ModelSchema& schema,
                            const CheckedRequest& checked, const std::string& key,
                            std::uint64_t id) {
    auto signature = std::make_shared<Signature>();
    signature->id = id;
    signature->key = key;
    if (!checked.mergeable) return signature;
    append_field(&signature->head, wire_tag(1, kLengthDelimited), schema.name);
    if (!schema.version.empty()) {
        append_field(&signature->head, wire_tag(2, kLengthDelimited), schema.version);
    }
    signature->head += parameter_fields(wire_tag(4, kLengthDelimited), scan.parameters.data(),
                                        scan.parameters.size());
    for (const CheckedInput& input : checked.inputs) {
        signature->inputs.push_back(make_input(scan, schema.inputs[input.schema], input));
    }
    if (rows_differ(schema)) {
        for (const SignatureInput& input : signature->inputs) {
            signature->row_bytes += input.row_bytes;
        }
    }
    make_outputs(scan, schema, checked, signature.get());
    if (checked.padded) make_trims(scan, schema, checked, signature.get());
    return signature;
}

}  // namespace

std::uint64_t signature_id(const Signature& signature) { return signature.id; }

std::uint64_t lone_row_bytes(const RequestScan& scan, const ModelSchema& schema,
                             const CheckedRequest& checked) {
    if (!rows_differ(schema)) return 0;
    std::uint64_t sum = 0;
    for (const CheckedInput& input : checked.inputs) {
        if (input.padding.fill != Fill::kNone) continue;
        const Range dims = scan.inputs[input.scanned].dims;
        std::uint64_t bytes = element_bytes(schema.inputs[input.schema].data_type);
        for (std::uint32_t i = 0; i < dims.count; ++i) {
            const auto dim = static_cast<std::uint64_t>(scan.dims[dims.first + i]);
            if (__builtin_mul_overflow(bytes, dim, &bytes)) return 0;
        }
        if (__builtin_add_overflow(sum, bytes, &sum)) return 0;
    }
    return sum / std::max(checked.rows, 1u);
}

SignatureTable::SignatureTable() : state_(std::make_unique<State>()) {
    // Collisions cannot be prepared by somebody who does not know where the table lies.
    state_->seed = reinterpret_cast<std::uintptr_t>(state_.get());
    state_->sweep_at_count = kSweepCountMin;
    state_->sweep_at_bytes = kSweepBytesMin;
}

SignatureTable::~SignatureTable() = default;

std::size_t SignatureTable::size() const { return state_->by_hash.size(); }

SignatureRef SignatureTable::State::intern(const RequestScan& scan, const ModelSchema& schema,
                                           const CheckedRequest& checked,
                                           std::string_view metadata) {
    build_key(scan, schema, checked, metadata, &key);
    if (latest && latest->key == key) return latest;
    const std::uint64_t hash = hash_bytes(span_of(key), seed);
    const auto range = by_hash.equal_range(hash);
    for (auto it = range.first; it != range.second; ++it) {
        if (it->second->key != key) continue;
        latest = it->second;
        return latest;
    }
    if (by_hash.size() >= sweep_at_count || key_bytes >= sweep_at_bytes) sweep();
    latest = make_signature(scan, schema, checked, key, ++id_last);
    key_bytes += key.size();
    by_hash.emplace(hash, latest);
    return latest;
}

// Constant work per new signature: the next sweep comes when as many have been added again.
void SignatureTable::State::sweep() {
    latest.reset();
    for (auto it = by_hash.begin(); it != by_hash.end();) {
        if (it->second.use_count() > 1) {
            ++it;
            continue;
        }
        key_bytes -= it->second->key.size();
        it = by_hash.erase(it);
    }
    sweep_at_count = std::max(kSweepCountMin, by_hash.size() * 2);
    sweep_at_bytes = std::max(kSweepBytesMin, key_bytes * 2);
}

}  // namespace infersched::kserve
