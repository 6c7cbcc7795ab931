// Outputs that are as long as a padded input, cut back to what the request itself would have got.
#pragma once

#include <cstdint>

#include "kserve/inline_array.h"
#include "kserve/prepared_request.h"
#include "kserve/reply.h"

namespace infersched::kserve {

struct Cut {
    std::uint32_t axis;            // 0 = the first after the batch dimension
    std::uint32_t length;          // that is kept of the axis
    std::uint64_t blocks_per_row;  // positions before the axis
    std::uint64_t block_elements;  // behind each of them
    std::uint64_t run_elements;    // kept of them
};

// What is to be cut off an output of a reply, for this request. False: nothing.
bool find_cut(const RequestAccess::State& request, const ReplyAccess::State& reply,
              const ReplyOutput& output, Cut* cut);

// The output's shape without dimension 0, as packed varints.
std::size_t cut_dims_bytes(const ReplyAccess::State& reply, const ReplyOutput& output,
                           const Cut& cut);
std::uint8_t* put_cut_dims(std::uint8_t* at, const ReplyAccess::State& reply,
                           const ReplyOutput& output, const Cut& cut);

struct KeptRun {
    const BufferRef* owner;
    Span bytes;
};
using KeptRuns = InlineArray<KeptRun, 32>;

// What is left of `rows` rows with the bytes `data`.
void keep_runs(const ReplyAccess::State& reply, const ReplyOutput& output, Span data,
               std::uint32_t rows, const Cut& cut, KeptRuns* runs);

}  // namespace infersched::kserve
