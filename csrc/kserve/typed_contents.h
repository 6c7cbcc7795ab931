// InferTensorContents: tensors spelled out as repeated fields instead of raw bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bytes.h"
#include "kserve/schema.h"

namespace infersched::kserve {

// The repeated fields of InferTensorContents by number.
enum ContentsField : std::uint32_t {
    kBoolContents = 1,
    kIntContents = 2,
    kInt64Contents = 3,
    kUintContents = 4,
    kUint64Contents = 5,
    kFp32Contents = 6,
    kFp64Contents = 7,
    kBytesContents = 8,
};

// Whether `contents` is well formed on the wire.
[[nodiscard]] bool is_typed_contents(Span contents, int depth);

// Which fields hold at least one element: bit n for field n.
std::uint32_t filled_contents(Span contents);

// The field that holds elements of this type, 0 for the types that have none (FP16, BF16).
std::uint32_t contents_field(DataType type);

// Whether append_raw() appends no more than `bytes_max`.
bool raw_bytes_within(Span contents, std::uint32_t field, DataType type, std::size_t bytes_max);

// Appends the elements of `field` as raw tensor bytes of `type`. Narrow integers are cut to their
// width, as Triton does. False when memory is exhausted.
[[nodiscard]] bool append_raw(Span contents, std::uint32_t field, DataType type, Buffer* raw);

}  // namespace infersched::kserve
