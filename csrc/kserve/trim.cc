#include "kserve/trim.h"

#include "kserve/signature.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

// Dimension `i` of the rows.
std::uint64_t row_dim(const ReplyAccess::State& reply, const ReplyOutput& output, std::uint32_t i) {
    return static_cast<std::uint64_t>(reply.dims[output.dims_first + 1 + i]);
}

}  // namespace

bool find_cut(const RequestAccess::State& request, const ReplyAccess::State& reply,
              const ReplyOutput& output, Cut* cut) {
    const Signature& signature = *request.signature;
    for (const Trim& trim : signature.trims) {
        const std::uint32_t padded = signature.inputs[trim.input].layout->length;
        const std::uint32_t length = request.inputs[trim.input].length;
        if (signature.output_names[trim.output] != output.name || length == padded) continue;
        if (trim.axis + 1 >= output.dims_count) continue;
        // A model may give back another length: then it is not that of the input.
        if (row_dim(reply, output, trim.axis) != padded) continue;
        *cut = {trim.axis, length, 1, padded, length};
        for (std::uint32_t i = 0; i + 1 < output.dims_count; ++i) {
            const std::uint64_t dim = row_dim(reply, output, i);
            if (i < trim.axis) cut->blocks_per_row *= dim;
            if (i <= trim.axis) continue;
            cut->block_elements *= dim;
            cut->run_elements *= dim;
        }
        return true;
    }
    return false;
}

std::size_t cut_dims_bytes(const ReplyAccess::State& reply, const ReplyOutput& output,
                           const Cut& cut) {
    const std::size_t before = varint_bytes(row_dim(reply, output, cut.axis));
    return output.tail_dims.size - before + varint_bytes(cut.length);
}

std::uint8_t* put_cut_dims(std::uint8_t* at, const ReplyAccess::State& reply,
                           const ReplyOutput& output, const Cut& cut) {
    for (std::uint32_t i = 0; i + 1 < output.dims_count; ++i) {
        at = put_varint(at, i == cut.axis ? cut.length : row_dim(reply, output, i));
    }
    return at;
}

void keep_runs(const ReplyAccess::State& reply, const ReplyOutput& output, Span data,
               std::uint32_t rows, const Cut& cut, KeptRuns* runs) {
    // Nothing to keep, however many blocks the shape claims.
    if (data.empty() || cut.run_elements == 0) return;
    const std::uint64_t cut_elements = cut.block_elements - cut.run_elements;
    const std::size_t width = output.is_bytes ? 0 : output.row_bytes / output.elements_per_row;
    std::size_t begin = 0;
    for (std::uint64_t block = rows * cut.blocks_per_row; block != 0; --block) {
        std::size_t end = begin + cut.run_elements * width;
        std::size_t next = end + cut_elements * width;
        if (output.is_bytes) {
            end = step_over_strings(data, begin, cut.run_elements);
            next = step_over_strings(data, end, cut_elements);
        }
        runs->push_back({&reply.owner(output), {data.data + begin, end - begin}});
        begin = next;
    }
}

}  // namespace infersched::kserve
