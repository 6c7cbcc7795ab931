// Several prepared requests of one signature become one ModelInferRequest.
#include <algorithm>

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
std::uint8_t* put_input(std::uint8_t* at, const SignatureInput& input, std::uint32_t rows) {
    const std::size_t shape_bytes = varint_bytes(rows) + input.tail_dims.size();
    const std::size_t size = input.head.size() + field_bytes(shape_bytes) + input.parameters.size();
    *at++ = wire_tag(5, kLengthDelimited);
    at = put_varint(at, size);
    at = put_bytes(at, input.head);
    *at++ = wire_tag(3, kLengthDelimited);
    at = put_varint(at, shape_bytes);
    at = put_varint(at, rows);
    at = put_bytes(at, input.tail_dims);
    return put_bytes(at, input.parameters);
}

std::size_t input_bytes_max(const SignatureInput& input) {
    return 1 + 10 + input.head.size() + 1 + 10 + 10 + input.tail_dims.size() +
           input.parameters.size();
}

// The union of what the parts ask for; false when one of them asks for everything.
bool wanted_outputs(const Batch& batch, InlineArray<std::uint32_t, 16>* wanted) {
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

// Everything but the tensor data.
void append_header(const Batch& batch, const Signature& signature, std::string_view id,
                   Pieces* message) {
    InlineArray<std::uint32_t, 16> outputs;
    const bool some_outputs = wanted_outputs(batch, &outputs);
    std::size_t bytes_max = signature.head.size() + 1 + 10 + id.size();
    for (const SignatureInput& input : signature.inputs) bytes_max += input_bytes_max(input);
    for (const std::uint32_t output : outputs) bytes_max += signature.output_fields[output].size();

    std::uint8_t* const begin = message->append_space(bytes_max);
    std::uint8_t* at = put_bytes(begin, signature.head);
    if (!id.empty()) at = put_field(at, wire_tag(3, kLengthDelimited), id);
    for (const SignatureInput& input : signature.inputs) {
        at = put_input(at, input, batch.rows_padded);
    }
    if (some_outputs) {
        for (const std::uint32_t output : outputs) {
            at = put_bytes(at, signature.output_fields[output]);
        }
    }
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

// Field 7: the rows of one input.
void append_tensor(const Batch& batch, const SignatureInput& input, std::size_t index,
                   Pieces* message) {
    std::uint8_t head[11];
    head[0] = wire_tag(7, kLengthDelimited);
    const std::uint8_t* end = put_varint(head + 1, tensor_bytes(batch, input, index));
    message->append_copy({head, static_cast<std::size_t>(end - head)});
    for (std::size_t i = 0; i < batch.count; ++i) {
        append_rows(input, batch.parts[i], index, 1, message);
    }
    if (batch.rows_padded == batch.rows) return;
    append_rows(input, last_row_of(batch), index, batch.rows_padded - batch.rows, message);
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
                    Pieces* message) {
    if (count == 0) return;
    const State& first = RequestAccess::state(*parts[0].request);
    if (!first.mergeable) {
        forward_request(first, message);
        return;
    }
    Batch batch = {parts, count, 0, 0};
    for (std::size_t i = 0; i < count; ++i) batch.rows += parts[i].rows;
    batch.rows_padded = std::max(batch.rows, rows_padded);
    const Signature& signature = *first.signature;
    const bool whole = count == 1 && parts[0].rows == first.rows;
    append_header(batch, signature, whole ? first.id : std::string_view(), message);
    for (std::size_t i = 0; i < signature.inputs.size(); ++i) {
        append_tensor(batch, signature.inputs[i], i, message);
    }
}

}  // namespace infersched::kserve
