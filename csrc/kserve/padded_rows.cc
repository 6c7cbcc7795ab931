// The rows of padded and filled-in inputs, as they go into a batch.
#include <algorithm>
#include <cstring>

#include "kserve/padding.h"
#include "kserve/prepared_request.h"
#include "kserve/signature.h"

namespace infersched::kserve {

namespace {

using State = RequestAccess::State;

// Shorter runs are cheaper to copy than to refer to.
constexpr std::size_t kCopyMax = 1024;

// The part's rows as the client sent them.
Span own_rows(const PadLayout& layout, const RequestRows& part, RequestTensor* tensor) {
    const State& state = RequestAccess::state(*part.request);
    if (part.rows == state.rows) return tensor->data;
    const std::uint64_t elements = layout.outer * tensor->length * layout.inner;
    if (layout.data_type == DataType::kBytes) {
        return string_rows(tensor->data, elements, part.row_begin, part.rows, &tensor->cursor);
    }
    const std::size_t row_bytes = elements * element_bytes(layout.data_type);
    return {tensor->data.data + part.row_begin * row_bytes, part.rows * row_bytes};
}

std::uint64_t padding_elements(const PadLayout& layout, const RequestTensor& tensor) {
    return (layout.length - tensor.length) * layout.inner;
}

void put_pattern(std::uint8_t* at, const PadLayout& layout, std::size_t size) {
    const Span pattern = layout.pattern.span();
    for (std::size_t done = 0; done < size; done += pattern.size) {
        std::memcpy(at + done, pattern.data, std::min(pattern.size, size - done));
    }
}

void append_pattern(const PadLayout& layout, std::size_t size, Pieces* message) {
    if (size <= kCopyMax) {
        if (size != 0) put_pattern(message->append_space(size), layout, size);
        return;
    }
    const Span pattern = layout.pattern.span();
    for (std::size_t done = 0; done < size; done += pattern.size) {
        const Span run = {pattern.data, std::min(pattern.size, size - done)};
        message->append_reference(layout.pattern, run);
    }
}

void append_run(const State& state, const RequestTensor& tensor, Span run, Pieces* message) {
    if (run.size <= kCopyMax) {
        message->append_copy(run);
    } else {
        message->append_reference(tensor.converted ? state.converted : state.message, run);
    }
}

// Little-endian bytes of a count in any numeric type.
std::uint64_t number_bits(DataType type, std::uint32_t number) {
    switch (type) {
        case DataType::kFp32: {
            const auto value = static_cast<float>(number);
            std::uint32_t bits = 0;
            std::memcpy(&bits, &value, 4);
            return bits;
        }
        case DataType::kFp64: {
            const auto value = static_cast<double>(number);
            std::uint64_t bits = 0;
            std::memcpy(&bits, &value, 8);
            return bits;
        }
        // Of these only the ones of a mask are written.
        case DataType::kFp16:
            return number == 0 ? 0 : 0x3c00;
        case DataType::kBf16:
            return number == 0 ? 0 : 0x3f80;
        default:
            return number;
    }
}

std::uint8_t* put_numbers(std::uint8_t* at, DataType type, std::uint32_t number,
                          std::uint64_t count) {
    const std::uint64_t bits = number_bits(type, number);
    const std::size_t width = element_bytes(type);
    if (width == 1 || bits == 0) {
        if (count != 0) std::memset(at, static_cast<int>(bits), count * width);
        return at + count * width;
    }
    for (; count != 0; --count, at += width) std::memcpy(at, &bits, width);
    return at;
}

void append_fill(const PadLayout& layout, const RequestRows& part, std::uint32_t length,
                 std::size_t bytes, Pieces* message) {
    if (bytes == 0) return;
    std::uint8_t* at = message->append_space(bytes);
    if (layout.fill == Fill::kLength) {
        put_numbers(at, layout.data_type, length, part.rows);
        return;
    }
    for (std::uint32_t row = 0; row < part.rows; ++row) {
        at = put_numbers(at, layout.data_type, 1, length);
        at = put_numbers(at, layout.data_type, 0, layout.length - length);
    }
}

// Each run of data with its padding.
void append_blocks(const PadLayout& layout, const State& state, const RequestTensor& tensor,
                   Span rows, std::uint64_t blocks, Pieces* message) {
    const std::size_t padding_bytes = padding_elements(layout, tensor) * layout.unit_bytes;
    const std::uint64_t run_elements = tensor.length * layout.inner;
    std::size_t begin = 0;
    for (; blocks != 0; --blocks) {
        const std::size_t end = layout.data_type == DataType::kBytes
                                    ? step_over_strings(rows, begin, run_elements)
                                    : begin + run_elements * layout.unit_bytes;
        append_run(state, tensor, {rows.data + begin, end - begin}, message);
        append_pattern(layout, padding_bytes, message);
        begin = end;
    }
}

}  // namespace

std::size_t padded_bytes(const SignatureInput& input, const RequestRows& part, std::size_t index) {
    const PadLayout& layout = *input.layout;
    if (layout.fill != Fill::kNone) return input.row_bytes * part.rows;
    // Measuring must not move the cursor: the rows themselves are still to be cut.
    RequestTensor tensor = RequestAccess::state(*part.request).inputs[index];
    const std::size_t padding_bytes = padding_elements(layout, tensor) * layout.unit_bytes;
    return own_rows(layout, part, &tensor).size + part.rows * layout.outer * padding_bytes;
}

void append_padded(const SignatureInput& input, const RequestRows& part, std::size_t index,
                   std::uint32_t times, Pieces* message) {
    const PadLayout& layout = *input.layout;
    State& state = RequestAccess::state(*part.request);
    RequestTensor* tensor = &state.inputs[index];
    const bool filled = layout.fill != Fill::kNone;
    const Span rows = filled ? Span() : own_rows(layout, part, tensor);
    for (; times != 0; --times) {
        if (filled) {
            append_fill(layout, part, tensor->length, input.row_bytes * part.rows, message);
        } else if (tensor->length == layout.length) {
            append_run(state, *tensor, rows, message);
        } else {
            append_blocks(layout, state, *tensor, rows, part.rows * layout.outer, message);
        }
    }
}

}  // namespace infersched::kserve
