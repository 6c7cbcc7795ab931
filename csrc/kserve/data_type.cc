#include "kserve/schema.h"

namespace infersched::kserve {

namespace {

struct DataTypeFacts {
    DataType type;
    std::string_view text;
    std::size_t bytes;
};

// Indexed by DataType.
constexpr DataTypeFacts kFacts[] = {
    {DataType::kInvalid, "<invalid>", 0}, {DataType::kBool, "BOOL", 1},
    {DataType::kUint8, "UINT8", 1},       {DataType::kUint16, "UINT16", 2},
    {DataType::kUint32, "UINT32", 4},     {DataType::kUint64, "UINT64", 8},
    {DataType::kInt8, "INT8", 1},         {DataType::kInt16, "INT16", 2},
    {DataType::kInt32, "INT32", 4},       {DataType::kInt64, "INT64", 8},
    {DataType::kFp16, "FP16", 2},         {DataType::kFp32, "FP32", 4},
    {DataType::kFp64, "FP64", 8},         {DataType::kBytes, "BYTES", 0},
    {DataType::kBf16, "BF16", 2},
};

const DataTypeFacts& facts(DataType type) { return kFacts[static_cast<std::size_t>(type)]; }

}  // namespace

DataType parse_data_type(std::string_view text) {
    for (const DataTypeFacts& row : kFacts) {
        if (row.text == text && row.type != DataType::kInvalid) return row.type;
    }
    return DataType::kInvalid;
}

std::string_view data_type_text(DataType type) { return facts(type).text; }

std::size_t element_bytes(DataType type) { return facts(type).bytes; }

bool has_class_results(DataType type) {
    return type != DataType::kInvalid && type != DataType::kBool && type != DataType::kFp16 &&
           type != DataType::kBf16 && type != DataType::kBytes;
}

}  // namespace infersched::kserve
