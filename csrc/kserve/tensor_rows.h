// Cutting rows out of raw tensor bytes.
//
// Rows of a fixed-size type are arithmetic. Rows of BYTES need a walk over length prefixes; a
// cursor remembers where the last walk ended, so cutting a tensor front to back is one walk in all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/bytes.h"

namespace infersched::kserve {

struct RowCursor {
    std::uint64_t row = 0;
    std::size_t offset = 0;
};

// Steps over `elements` strings from `offset`. The tensor has been checked to hold them.
inline std::size_t step_over_strings(Span data, std::size_t offset, std::uint64_t elements) {
    for (; elements != 0; --elements) {
        std::uint32_t length;
        std::memcpy(&length, data.data + offset, 4);
        offset += 4 + static_cast<std::size_t>(length);
    }
    return offset;
}

// Rows [row_begin, row_begin + rows) of a BYTES tensor.
inline Span string_rows(Span data, std::uint64_t elements_per_row, std::uint64_t row_begin,
                        std::uint64_t rows, RowCursor* cursor) {
    if (cursor->row > row_begin) *cursor = RowCursor();
    const std::uint64_t ahead = row_begin - cursor->row;
    const std::size_t begin = step_over_strings(data, cursor->offset, ahead * elements_per_row);
    const std::size_t end = step_over_strings(data, begin, rows * elements_per_row);
    *cursor = {row_begin + rows, end};
    return {data.data + begin, end - begin};
}

}  // namespace infersched::kserve
