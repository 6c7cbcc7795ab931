// What the codec must know of a model to check, merge and split its requests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infersched::kserve {

enum class DataType : std::uint8_t {
    kInvalid,
    kBool,
    kUint8,
    kUint16,
    kUint32,
    kUint64,
    kInt8,
    kInt16,
    kInt32,
    kInt64,
    kFp16,
    kFp32,
    kFp64,
    kBytes,
    kBf16,
};

// kInvalid for a text that names no type.
DataType parse_data_type(std::string_view text);
std::string_view data_type_text(DataType type);
// Bytes of one element; 0 for BYTES, whose elements carry their own length.
std::size_t element_bytes(DataType type);
// Whether Triton can turn outputs of this type into class results.
bool has_class_results(DataType type);

// Variable lengths of one input made equal, so that requests of different lengths share a batch.
// The dimension `axis` (0 = the first after the batch dimension) is filled up with `value` to the
// smallest of `buckets` that fits; a longer one keeps its length.
struct Padding {
    std::uint32_t axis = 0;
    std::vector<std::int64_t> buckets;  // ascending; empty: no padding
    std::string value;                  // bytes of one element; for BYTES the element's text
    // Inputs that the scheduler fills in when the client leaves them out; empty: none.
    std::string mask_input;    // [rows, length]: 1 where the tensor has data, 0 where it is padding
    std::string length_input;  // [rows, 1]: the length before padding
};

struct TensorSchema {
    std::string name;
    DataType data_type = DataType::kInvalid;
    std::vector<std::int64_t> dims;  // without the batch dimension; -1 = variable
    bool optional = false;
    bool shape_tensor = false;
    bool ragged = false;
    Padding padding;  // of an input
    // Output: name of the padded input whose length its `trim_axis` has; cut back to that length.
    std::string trim_to;
    std::uint32_t trim_axis = 0;
};

struct ModelSchema {
    std::string name;
    std::string version;              // resolved, numeric
    std::int64_t max_batch_size = 0;  // 0: the model has no batch dimension
    // Rows of a request that can be split; 0: any number. Others have at most max_batch_size.
    std::int64_t rows_max = 0;
    bool merge = true;  // false: never share a batch
    bool decoupled = false;
    bool sequence = false;
    std::vector<TensorSchema> inputs;   // in the model's order
    std::vector<TensorSchema> outputs;  // in the model's order
};

}  // namespace infersched::kserve
