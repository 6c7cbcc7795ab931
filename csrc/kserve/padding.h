// Lengths made equal: which inputs of a request are padded to which length, which are filled in for
// the client, and what their rows look like in a batch.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "base/bytes.h"
#include "kserve/schema.h"

namespace infersched::kserve {

struct CheckedRequest;
struct RequestScan;
struct RequestRows;
struct SignatureInput;

// What the scheduler writes into an input that the client left out.
enum class Fill : std::uint8_t { kNone, kMask, kLength };

// One input of one request.
struct InputPadding {
    std::int64_t padded = -1;  // its length in a batch; -1: neither padded nor filled in
    std::uint32_t length = 0;  // its own; of a filled input: of the one it describes
    std::uint32_t axis = 0;    // 0 = the first after the batch dimension
    std::uint32_t source = 0;  // of a filled input: the one it describes, by schema index
    Fill fill = Fill::kNone;
};

// One input of all requests of a signature.
struct PadLayout {
    Fill fill = Fill::kNone;
    std::uint64_t outer = 1;     // elements of a row before the axis
    std::uint64_t inner = 1;     // behind each of its positions
    std::uint32_t length = 0;    // of the axis, in a batch
    std::size_t unit_bytes = 0;  // of one element of padding
    BufferRef pattern;           // such elements, repeated
    DataType data_type = DataType::kInvalid;
};

bool has_padding(const ModelSchema& schema);

// Whether clients may leave out this input because it describes a padded one.
bool is_filled_in(const ModelSchema& schema, std::string_view input);

// Finds the padding of the inputs of a checked, mergeable request and adds the inputs that are to
// be filled in. False: a length is too large to be written.
[[nodiscard]] bool plan_padding(const RequestScan& scan, const ModelSchema& schema,
                                CheckedRequest* checked);

// `dims` are those of a row in the batch.
std::unique_ptr<PadLayout> make_layout(const TensorSchema& tensor, const InputPadding& padding,
                                       const std::int64_t* dims, std::size_t rank);

// Bytes of the rows of one part in an input that has a layout; `index` is that of the input.
std::size_t padded_bytes(const SignatureInput& input, const RequestRows& part, std::size_t index);
// Appends them `times` times.
void append_padded(const SignatureInput& input, const RequestRows& part, std::size_t index,
                   std::uint32_t times, Pieces* message);

}  // namespace infersched::kserve
