// What Triton's core checks: InferenceRequest::Normalize and what it calls, and the one check of
// strings that it leaves to the backends.
#include <algorithm>
#include <set>

#include "kserve/request_fault.h"

namespace infersched::kserve {

namespace {

std::string dims_text(const std::vector<std::int64_t>& dims) {
    std::string text = "[";
    for (const std::int64_t dim : dims) {
        if (text.size() > 1) text += ",";
        text += std::to_string(dim);
    }
    return text + "]";
}

}  // namespace

Status Examiner::examine_outputs() const {
    std::set<std::string_view> requested;
    for (const ScannedOutput& output : scan.outputs) requested.insert(output.name);
    for (const std::string_view name : requested) {
        bool known = false;
        for (const TensorSchema& tensor : schema.outputs) known = known || tensor.name == name;
        if (!known) {
            return invalid("unexpected inference output " + quoted(name) + " " + for_model());
        }
    }
    return Status();
}

// Triton counts inputs here; unknown names show up later.
Status Examiner::examine_input_names() const {
    std::size_t required = 0;
    const auto may_lack = [this](const TensorSchema& tensor) {
        return tensor.optional || is_filled_in(schema, tensor.name);
    };
    for (const TensorSchema& tensor : schema.inputs) required += may_lack(tensor) ? 0 : 1;
    if (inputs.size() >= required && inputs.size() <= schema.inputs.size()) return Status();

    std::string missing = "[";
    for (const TensorSchema& tensor : schema.inputs) {
        if (may_lack(tensor) || inputs.count(tensor.name) != 0) continue;
        missing += quoted(tensor.name) + ",";
    }
    missing.pop_back();  // takes the bracket when nothing is missing, as Triton does
    std::string got = "[";
    for (const auto& [name, input] : inputs) got += quoted(name) + ",";
    got.pop_back();
    if (inputs.empty()) got = "[";
    const std::string expected = required == schema.inputs.size()
                                     ? "expected " + std::to_string(required) + " inputs"
                                     : "expected number of inputs between " +
                                           std::to_string(required) + " and " +
                                           std::to_string(schema.inputs.size());
    return invalid(prefix() + expected + " but got " + std::to_string(inputs.size()) + " inputs " +
                   for_model() + ". Got input(s) " + got + "], but missing required input(s) " +
                   missing + "]. Please provide all required input(s).");
}

Status Examiner::find_batch_size() {
    for (const auto& [name, input] : inputs) {
        if (input.schema == nullptr) {
            return invalid("unexpected inference input " + quoted(name) + " " + for_model());
        }
        if (schema.max_batch_size == 0 || input.schema->shape_tensor) continue;
        if (input.dims.empty()) {
            return invalid(prefix() + "input " + quoted(name) +
                           " has no shape but model requires batch dimension for " +
                           quoted(schema.name));
        }
        if (batch_size == 0) {
            batch_size = static_cast<BatchSize>(input.dims[0]);
        } else if (input.dims[0] != static_cast<std::int64_t>(batch_size)) {
            return invalid(prefix() + "input " + quoted(name) +
                           " batch size does not match other inputs for " + quoted(schema.name));
        }
    }
    return Status();
}

Status Examiner::examine_batch_size() const {
    if (rows_max == 0 || schema.max_batch_size == 0) return Status();
    if (static_cast<std::int32_t>(batch_size) <= rows_max) return Status();
    return invalid(prefix() + "inference request batch-size must be <= " +
                   std::to_string(rows_max) + " for " + quoted(schema.name));
}

Status Examiner::examine_type_and_shape(const std::string& name, const Input& input) const {
    const std::string_view expected_type = data_type_text(input.schema->data_type);
    if (input.data_type != expected_type) {
        return invalid(prefix() + "inference input " + quoted(name) + " data-type is " +
                       quoted(input.data_type) + ", but model " + quoted(schema.name) +
                       " expects " + quoted(expected_type));
    }
    const bool batched = schema.max_batch_size > 0 && !input.schema->shape_tensor;
    const std::size_t lead = batched ? 1 : 0;
    bool match = input.dims.size() == input.schema->dims.size() + lead;
    for (std::size_t i = 0; match && i < input.schema->dims.size(); ++i) {
        const std::int64_t dim = input.dims[i + lead];
        const std::int64_t expected = input.schema->dims[i];
        if (dim == -1) {
            return invalid(prefix() + "All input dimensions should be specified for input " +
                           quoted(name) + " " + for_model() + ", got " + dims_text(input.dims));
        }
        match = expected == -1 || expected == dim;
    }
    if (match) return Status();
    std::vector<std::int64_t> full_dims = input.schema->dims;
    std::string note;
    if (schema.max_batch_size > 0) {
        full_dims.insert(full_dims.begin(), -1);
        note =
            "NOTE: Setting a non-zero max_batch_size in the model config requires a batch "
            "dimension to be prepended to each input shape. If you want to specify the full shape "
            "including the batch dim in your input dims config, try setting max_batch_size to "
            "zero. See the model configuration docs for more info on max_batch_size.";
    }
    return invalid(prefix() + "unexpected shape for input " + quoted(name) + " " + for_model() +
                   ". Expected " + dims_text(full_dims) + ", got " + dims_text(input.dims) + ". " +
                   note);
}

// The dimensions Triton computes the byte size from: without a batch dimension of zero.
std::vector<std::int64_t> Examiner::sized_dims(const Input& input) const {
    std::vector<std::int64_t> dims = input.dims;
    if (schema.max_batch_size == 0 || input.schema->shape_tensor) return dims;
    if (batch_size == 0) {
        dims.erase(dims.begin());
    } else {
        dims[0] = batch_size;
    }
    return dims;
}

Status Examiner::examine_size(const std::string& name, const Input& input) const {
    // Multiplication wraps around, as Triton's does.
    const std::vector<std::int64_t> dims = sized_dims(input);
    std::uint64_t elements = dims.empty() ? 0 : 1;
    bool wildcard = false;
    for (const std::int64_t dim : dims) {
        wildcard = wildcard || dim == -1;
        elements *= static_cast<std::uint64_t>(dim);
    }
    const auto count = wildcard ? -1 : static_cast<std::int64_t>(elements);
    if (input.schema->data_type == DataType::kBytes) return examine_strings(name, input, count);
    std::int64_t expected = -1;
    if (count != -1) {
        expected = static_cast<std::int64_t>(elements * element_bytes(input.schema->data_type));
    }
    if (expected == static_cast<std::int64_t>(input.data.size)) return Status();
    return invalid(prefix() + "input byte size mismatch for input " + quoted(name) + " " +
                   for_model() + ". Expected " + std::to_string(expected) + ", got " +
                   std::to_string(input.data.size));
}

Status Examiner::examine_strings(const std::string& name, const Input& input,
                                 std::int64_t count) const {
    const Span data = input.data;
    std::int64_t found = 0;
    std::size_t at = 0;
    while (at < data.size) {
        const std::size_t left = data.size - at;
        if (left < 4) {
            return invalid(prefix() + "incomplete string length indicator for inference input " +
                           quoted(name) + " " + for_model() + ", expecting 4 bytes but only " +
                           std::to_string(left) +
                           " bytes available. Please make sure the string length indicator is in "
                           "one buffer.");
        }
        if (++found > count) {
            return invalid(prefix() + "unexpected number of string elements " +
                           std::to_string(found) + " for inference input " + quoted(name) + " " +
                           for_model() + ", expecting " + std::to_string(count));
        }
        std::uint32_t length = 0;
        std::memcpy(&length, data.data + at, 4);
        at += 4;
        // A last string that is cut short is the backend's to find.
        at += std::min<std::size_t>(length, data.size - at);
    }
    if (found == count) return Status();
    return invalid(prefix() + "expected " + std::to_string(count) +
                   " string elements for inference input " + quoted(name) + " " + for_model() +
                   ", got " + std::to_string(found));
}

// What Triton's backends find: the last string is shorter than it says.
Status Examiner::examine_last_string(const std::string& name, const Input& input) const {
    if (input.schema->data_type != DataType::kBytes) return Status();
    std::size_t at = 0;
    while (input.data.size - at >= 4) {
        std::uint32_t length = 0;
        std::memcpy(&length, input.data.data + at, 4);
        at += 4;
        if (length <= input.data.size - at) {
            at += length;
            continue;
        }
        return invalid("incomplete string data for inference input " + quoted(name) +
                       ", expecting string of length " + std::to_string(length) + " but only " +
                       std::to_string(input.data.size - at) + " bytes available");
    }
    return Status();
}

}  // namespace infersched::kserve
