// Judges a scanned request against its model: what Triton would refuse is refused here, before it
// can fail the batch it would share.
//
// Two functions for one question. check_request decides quickly and in any order; only a request it
// doubts goes to explain_fault, which repeats Triton's own sequence of checks to find the text that
// Triton would answer.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/status.h"
#include "kserve/codec.h"
#include "kserve/inline_array.h"
#include "kserve/padding.h"
#include "kserve/request_scan.h"
#include "kserve/schema.h"

namespace infersched::kserve {

// Characters of a correlation id that is a string.
inline constexpr std::size_t kSequenceIdBytesMax = 128;

struct CheckedInput {
    std::uint32_t schema;   // index into ModelSchema::inputs
    std::uint32_t scanned;  // index into RequestScan::inputs
    Span data;              // raw tensor bytes
    InputPadding padding;
    std::size_t converted_at = 0;  // typed: where `data` starts in CheckedRequest::converted
    bool typed = false;
};

struct CheckedRequest {
    std::uint32_t rows = 1;
    bool mergeable = false;
    bool alone = false;   // an empty tensor's shape is too large for a batch of many such rows
    bool padded = false;  // has inputs that are padded or filled in
    SchedulingParameters scheduling;
    const Parameter* sequence_id = nullptr;    // in the scan
    InlineArray<std::string_view, 4> regions;  // of shared memory, ascending, no repeats
    InlineArray<CheckedInput, 8> inputs;       // by schema index
    InlineArray<std::uint32_t, 8> outputs;     // requested, schema indices, ascending, no repeats
    InlineArray<const ScannedOutput*, 4>
        output_parameters;                // one per output that has some, likewise
    BufferRef converted;                  // typed contents as raw bytes
    std::size_t converted_bytes_max = 0;  // set by the caller; not cleared

    void clear();
};

// False: something may be wrong with it, or it uses shared memory; ask explain_fault.
[[nodiscard]] bool check_request(const RequestScan& scan, const ModelSchema& schema,
                                 CheckedRequest* checked);

// What Triton would say of a request that may have `rows_max` rows (0: any number). OK when it
// would accept the request (zero rows).
Status explain_fault(const RequestScan& scan, const ModelSchema& schema, std::int64_t rows_max,
                     std::size_t converted_bytes_max);

// Whether the request asks for class results of an output whose type has none. Triton finds that
// out after the execution, and for BYTES outputs by dividing by their element size of zero.
bool asks_impossible_classes(const RequestScan& scan, const ModelSchema& schema);

// `[request id: <id or <id_unknown>>] `
std::string request_prefix(std::string_view id);

// Whether `data` is exactly `count` length-prefixed strings.
bool is_bytes_tensor(Span data, std::uint64_t count);

}  // namespace infersched::kserve
