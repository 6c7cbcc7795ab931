// Large tensors of a batch that lie in a segment of shared memory, which the backend has registered
// as a region: the message names their places instead of carrying their bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "kserve/schema.h"

namespace infersched::kserve {

struct RequestRows;
class PreparedRequest;

// Smaller tensors are cheaper on the wire.
inline constexpr std::size_t kSharedTensorBytesMin = 64u << 10;

struct SharedRange {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;  // 0: the tensor is not in the region
};

struct SharedTensors {
    std::string_view region;
    std::vector<SharedRange> inputs;   // in the order of the message; as many as input_count()
    std::vector<SharedRange> outputs;  // in the model's order; empty: none
};

// Where in a ModelInferRequest, of which `head` is the beginning, the first large tensor begins;
// 0 when that does not show.
std::size_t large_tensor_offset(Span head);

// Bytes of `rows` rows of a tensor; 0 when they cannot be told or are too many to address.
std::uint64_t fixed_bytes(const TensorSchema& tensor, std::uint64_t rows);

// Inputs of a mergeable request.
std::size_t input_count(const PreparedRequest& request);
// The bytes of one input of the merged message, in order.
void append_input(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded,
                  std::size_t index, Pieces* bytes);
// The bytes that each output of the model takes in the reply to the merged message, 0 where it is
// not asked for, is small, or its size cannot be told; all 0 where the requests were prepared for a
// model with other outputs.
void predict_outputs(const RequestRows* parts, std::size_t count, std::uint32_t rows_padded,
                     const ModelSchema& schema, std::vector<std::uint64_t>* bytes);

}  // namespace infersched::kserve
