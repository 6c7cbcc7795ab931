// Several prepared requests of one signature become one ModelInferRequest.
#include <algorithm>

#include "kserve/parameter.h"
#include "kserve/places.h"
#include "kserve/prepared_request.h"
#include "kserve/signature.h"
#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

using State = RequestAccess::State;

// Shorter runs are cheaper to copy than to refer to.
constexpr std::size_t kCopyMax = 1024;

// The rows of one part in its `index`-th input.
Span rows_of(const SignatureInput& input, const RequestRows& part, std::size_t index) {
    State& state = RequestAccess::state(*part.request);
    RequestTensor* tensor = &state.inputs[index];
    if (part.rows == state.rows) return tensor->data;
    if (input.is_bytes) {
        return string_rows(tensor->data, input.elements_per_row, part.row_begin, part.rows,
                           &tensor->cursor);
    }
    return {tensor->data.data + part.row_begin * input.row_bytes, part.rows * input.row_bytes};
}

struct Batch {
    const RequestRows* parts;
    std::size_t count;
    std::uint32_t rows;         // of the parts
    std::uint32_t rows_padded;  // of the message
};

// Field 5 of the message: name, datatype, shape and parameters of one input.
std::uint8_t* put_input(std::uint8_t* at, const SignatureInput& input, std::uint32_t rows,
                        std::string_view place) {
    const std::size_t shape_bytes = varint_bytes(rows) + input.tail_dims.size();
    const std::size_t size =
        input.head.size() + field_bytes(shape_bytes) + input.parameters.size() + place.size();
    *at++ = wire_tag(5, kLengthDelimited);
    at = put_varint(at, size);
    at = put_bytes(at, input.head);
    *at++ = wire_tag(3, kLengthDelimited);
    at = put_varint(at, shape_bytes);
    at = put_varint(at, rows);
    at = put_bytes(at, input.tail_dims);
    return put_bytes(put_bytes(at, input.parameters), place);
}

std::size_t input_bytes_max(const SignatureInput& input) {
    return 1 + 10 + input.head.size() + 1 + 10 + 10 + input.tail_dims.size() +
           input.parameters.size();
}

using OutputList = InlineArray<std::uint32_t, 16>;

// The union of what the parts ask for; false when one of them asks for everything.
bool wanted_outputs(const Batch& batch, OutputList* wanted) {
    const State& first = RequestAccess::state(*batch.parts[0].request);
    if (first.outputs.empty()) return false;
    for (std::size_t i = 0; i < batch.count; ++i) {
        const State& state = RequestAccess::state(*batch.parts[i].request);
        if (state.outputs.empty()) return false;
        const bool same =
            i != 0 && state.outputs.size() == first.outputs.size() &&
            std::equal(first.outputs.begin(), first.outputs.end(), state.outputs.begin());
        if (same) continue;
        for (const std::uint32_t output : state.outputs) wanted->push_back(output);
    }
    std::sort(wanted->begin(), wanted->end());
    const auto* end = std::unique(wanted->begin(), wanted->end());
    wanted->resize(static_cast<std::uint32_t>(end - wanted->begin()));
    return true;
}

// The fields that ask for outputs; none when all are wanted and come with the reply.
void request_outputs(const Batch& batch, const Signature& signature, const Places& places,
                     InlineArray<std::string_view, 16>* fields) {
    OutputList outputs;
    if (!wanted_outputs(batch, &outputs)) {
        if (places.outputs.empty()) return;
        // One that is named leaves out those that are not.
        outputs.clear();
        for (std::uint32_t i = 0; i < signature.output_fields.size(); ++i) outputs.push_back(i);
    }
    for (const std::uint32_t output : outputs) {
        const bool placed = output < places.outputs.size() && !places.outputs[output].empty();
        fields->push_back(placed ? places.outputs[output] : signature.output_fields[output]);
    }
}

// Everything but the tensor data.
void append_header(const Batch& batch, const Signature& signature, std::string_view id,
                   const Places& places, Pieces* message) {
    InlineArray<std::string_view, 16> outputs;
    request_outputs(batch, signature, places, &outputs);
    std::size_t bytes_max = signature.head.size() + 1 + 10 + id.size();
    for (const SignatureInput& input : signature.inputs) bytes_max += input_bytes_max(input);
    for (const std::string& place : places.inputs) bytes_max += place.size();
    for (const std::string_view field : outputs) bytes_max += field.size();

    std::uint8_t* const begin = message->append_space(bytes_max);
    std::uint8_t* at = put_bytes(begin, signature.head);
    if (!id.empty()) at = put_field(at, wire_tag(3, kLengthDelimited), id);
    for (std::size_t i = 0; i < signature.inputs.size(); ++i) {
        const std::string_view place =
            i < places.inputs.size() ? std::string_view(places.inputs[i]) : std::string_view();
        at = put_input(at, signature.inputs[i], batch.rows_padded, place);
    }
    for (const std::string_view field : outputs) at = put_bytes(at, field);
    message->shrink_space(bytes_max - static_cast<std::size_t>(at - begin));
}

void append_run(const RequestRows& part, std::size_t index, Span rows, Pieces* message) {
    const State& state = RequestAccess::state(*part.request);
    if (rows.size <= kCopyMax) {
        message->append_copy(rows);
    } else {
        message->append_reference(state.inputs[index].converted ? state.converted : state.message,
                                  rows);
    }
}

// The rows of one part in one input, so many times.
void append_rows(const SignatureInput& input, const RequestRows& part, std::size_t index,
                 std::uint32_t times, Pieces* message) {
    if (input.layout) {
        append_padded(input, part, index, times, message);
        return;
    }
    const Span rows = rows_of(input, part, index);
    for (; times != 0; --times) append_run(part, index, rows, message);
}

// What a padded batch repeats.
RequestRows last_row_of(const Batch& batch) {
    const RequestRows& part = batch.parts[batch.count - 1];
    return {part.request, part.row_begin + part.rows - 1, 1};
}

// Likewise where rows are padded, each to the same length.
std::size_t padded_tensor_bytes(const Batch& batch, const SignatureInput& input,
                                std::size_t index) {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < batch.count; ++i) {
        bytes += padded_bytes(input, batch.parts[i], index);
    }
    if (batch.rows_padded == batch.rows) return bytes;
    const std::size_t last_row_bytes = padded_bytes(input, last_row_of(batch), index);
    return bytes + last_row_bytes * (batch.rows_padded - batch.rows);
}

// Bytes of one input over all parts and the rows that are repeated.
std::size_t tensor_bytes(const Batch& batch, const SignatureInput& input, std::size_t index) {
    if (input.layout) return padded_tensor_bytes(batch, input, index);
    if (!input.is_bytes) return input.row_bytes * batch.rows_padded;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < batch.count; ++i) {
        // Measuring must not move the cursor: the rows themselves are still to be cut.
        RowCursor& cursor = RequestAccess::state(*batch.parts[i].request).inputs[index].cursor;
        const RowCursor before = cursor;
        bytes += rows_of(input, batch.parts[i], index).size;
        cursor = before;
    }
    if (batch.rows_padded == batch.rows) return bytes;
    const std::size_t last_row_bytes = rows_of(input, last_row_of(batch), index).size;
    return bytes + last_row_bytes * (batch.rows_padded - batch.rows);
}

// The rows of one input, of all parts.
void append_tensor_data(const Batch& batch, const SignatureInput& input, std::size_t index,
                        Pieces* message) {
    for (std::size_t i = 0; i < batch.count; ++i) {
        append_rows(input, batch.parts[i], index, 1, message);
    }
    if (batch.rows_padded == batch.rows) return;
    append_rows(input, last_row_of(batch), index, batch.rows_padded - batch.rows, message);
}

// Field 7: the rows of one input.
void append_tensor(const Batch& batch, const SignatureInput& input, std::size_t index,
                   Pieces* message) {
    std::uint8_t head[11];
    head[0] = wire_tag(7, kLengthDelimited);
    const std::uint8_t* end = put_varint(head + 1, tensor_bytes(batch, input, index));
    message->append_copy({head, static_cast<std::size_t>(end - head)});
    append_tensor_data(batch, input, index, message);
}

Batch make_batch(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded) {
    Batch batch = {parts, count, 0, 0};
    for (std::size_t i = 0; i < count; ++i) batch.rows += parts[i].rows;
    batch.rows_padded = std::max(batch.rows, rows_padded);
    return batch;
}

}  // namespace

void forward_request(const State& state, Pieces* message) {
    const Span whole = state.message.span();
    const std::uint8_t* at = whole.data;
    for (const Span& field : state.consumed_fields) {
        message->append_reference(state.message, {at, static_cast<std::size_t>(field.data - at)});
        at = field.data + field.size;
    }
    const std::uint8_t* end = whole.data + whole.size;
    message->append_reference(state.message, {at, static_cast<std::size_t>(end - at)});
}

void merge_requests(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded,
                    Pieces* message, const SharedTensors* shared) {
    if (count == 0) return;
    const State& first = RequestAccess::state(*parts[0].request);
    if (!first.mergeable) {
        forward_request(first, message);
        return;
    }
    const Batch batch = make_batch(parts, count, rows_padded);
    const Signature& signature = *first.signature;
    const bool whole = count == 1 && parts[0].rows == first.rows;
    append_header(batch, signature, whole ? first.id : std::string_view(),
                  shared != nullptr ? make_places(*shared, signature.output_names) : Places(),
                  message);
    for (std::size_t i = 0; i < signature.inputs.size(); ++i) {
        if (shared != nullptr && shared->inputs[i].bytes != 0) continue;
        append_tensor(batch, signature.inputs[i], i, message);
    }
}

std::size_t input_count(const PreparedRequest& request) {
    return RequestAccess::state(request).signature->inputs.size();
}

void append_input(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded,
                  std::size_t index, Pieces* bytes) {
    const State& first = RequestAccess::state(*parts[0].request);
    const Batch batch = make_batch(parts, count, rows_padded);
    append_tensor_data(batch, first.signature->inputs[index], index, bytes);
}

namespace {

// A request that waits while its model is loaded anew has the outputs of the former one.
bool same_outputs(const Signature& signature, const ModelSchema& schema) {
    return std::equal(
        signature.output_names.begin(), signature.output_names.end(), schema.outputs.begin(),
        schema.outputs.end(),
        [](const std::string& name, const TensorSchema& output) { return name == output.name; });
}

}  // namespace

void predict_outputs(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded,
                     const ModelSchema& schema, std::vector<std::uint64_t>* bytes) {
    const Batch batch = make_batch(parts, count, rows_padded);
    const Signature& signature = *RequestAccess::state(*parts[0].request).signature;
    OutputList outputs;
    const bool some = wanted_outputs(batch, &outputs);
    bytes->assign(schema.outputs.size(), 0);
    if (!same_outputs(signature, schema)) return;
    for (std::uint32_t i = 0; i < schema.outputs.size(); ++i) {
        if (some && std::find(outputs.begin(), outputs.end(), i) == outputs.end()) continue;
        std::string plain;
        append_field(&plain, wire_tag(1, kLengthDelimited), schema.outputs[i].name);
        // One with parameters of its own, such as class results, is something else.
        if (signature.output_fields[i].size() != field_bytes(plain.size())) continue;
        const std::uint64_t size = fixed_bytes(schema.outputs[i], batch.rows_padded);
        if (size >= kSharedTensorBytesMin) (*bytes)[i] = size;
    }
}

}  // namespace infersched::kserve
