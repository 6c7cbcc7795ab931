#include "kserve/places.h"

#include "kserve/parameter.h"
#include "kserve/wire_reader.h"

namespace infersched::kserve {

namespace {

constexpr std::uint8_t kInputParameter = wire_tag(4, kLengthDelimited);
constexpr std::uint8_t kOutputName = wire_tag(1, kLengthDelimited);
constexpr std::uint8_t kOutputParameter = wire_tag(2, kLengthDelimited);
constexpr std::uint8_t kRequestedOutput = wire_tag(6, kLengthDelimited);
constexpr std::uint32_t kRawContents = wire_tag(7, kLengthDelimited);

void append_place(std::string* out, std::uint8_t tag, std::string_view region,
                  const SharedRange& range) {
    append_parameter(out, tag, {"shared_memory_region", region, 0, ParameterKind::kString});
    append_parameter(out, tag, {"shared_memory_byte_size", {}, range.bytes, ParameterKind::kInt64});
    append_parameter(out, tag, {"shared_memory_offset", {}, range.offset, ParameterKind::kInt64});
}

}  // namespace

Places make_places(const SharedTensors& shared, const std::vector<std::string>& output_names) {
    Places places;
    places.inputs.resize(shared.inputs.size());
    for (std::size_t i = 0; i < shared.inputs.size(); ++i) {
        if (shared.inputs[i].bytes == 0) continue;
        append_place(&places.inputs[i], kInputParameter, shared.region, shared.inputs[i]);
    }
    places.outputs.resize(shared.outputs.size());
    for (std::size_t i = 0; i < shared.outputs.size(); ++i) {
        if (shared.outputs[i].bytes == 0) continue;
        std::string body;
        append_field(&body, kOutputName, output_names[i]);
        append_place(&body, kOutputParameter, shared.region, shared.outputs[i]);
        append_field(&places.outputs[i], kRequestedOutput, body);
    }
    return places;
}

std::uint64_t fixed_bytes(const TensorSchema& tensor, std::uint64_t rows) {
    std::uint64_t bytes = 0;
    if (__builtin_mul_overflow(rows, element_bytes(tensor.data_type), &bytes)) return 0;
    for (const std::int64_t dim : tensor.dims) {
        if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dim), &bytes))
            return 0;
    }
    return bytes;
}

std::size_t large_tensor_offset(Span head) {
    WireReader reader(head);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        std::uint64_t size = 0;
        if (!reader.read_tag(&tag)) return 0;
        if (tag != kRawContents) {
            if (!reader.skip(tag, 0)) return 0;
            continue;
        }
        if (!reader.read_varint(&size)) return 0;
        const auto offset = static_cast<std::size_t>(reader.at() - head.data);
        if (size >= kSharedTensorBytesMin) return offset;
        if (size > head.size - offset) return 0;
        reader = WireReader({reader.at() + size, head.size - offset - size});
    }
    return 0;
}

}  // namespace infersched::kserve
