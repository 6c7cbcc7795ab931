// Triton's checks of a request in Triton's order, with Triton's words (2.51). Runs only for
// requests that are about to be refused, so it is written to be compared with Triton's sources, not
// to be fast.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kserve/hash.h"
#include "kserve/request_check.h"

namespace infersched::kserve {

inline Status invalid(std::string text) {
    return Status::error(StatusCode::kInvalidArgument, std::move(text));
}

inline std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

// The same of a text that may go on behind a NUL; see invalid_as_sent().
inline std::string as_sent(std::string_view text, bool cut) {
    return cut ? "'" + std::string(text) + '\0' : quoted(text);
}

// A text of the gRPC front end ends at the first NUL of the names in it.
inline Status invalid_as_sent(const std::string& text) { return invalid(text.c_str()); }

// The first dimension of a batched input, as Triton keeps it.
using BatchSize = std::uint32_t;

struct Input {
    const TensorSchema* schema = nullptr;  // nullptr: the model has none of this name
    std::string_view data_type;
    std::vector<std::int64_t> dims;
    BufferRef converted;
    Span data;
};

// A client may choose names that all meet in one bucket, so more than a few inputs are hashed by a
// seed that it does not know.
struct NameHash {
    std::uint64_t seed = 0;  // 0: as Triton hashes them

    std::size_t operator()(const std::string& name) const {
        return seed == 0 ? std::hash<std::string>()(name) : hash_bytes(span_of(name), seed);
    }
};

// Triton walks its inputs in the order of this very container, filled in the same sequence.
using Inputs = std::unordered_map<std::string, Input, NameHash>;

struct Examiner {
    const RequestScan& scan;
    const ModelSchema& schema;
    std::int64_t rows_max;             // 0: any number
    std::size_t converted_bytes_left;  // for typed contents as raw bytes
    Inputs inputs;
    BatchSize batch_size = 0;
    bool has_region = false;  // a tensor lies in shared memory; what follows it was not looked at
    std::string bad_field = {};  // of the request, in which the fault lies

    std::string prefix() const { return request_prefix(scan.id); }
    std::string for_model() const { return "for model " + quoted(schema.name); }
    // The gRPC front end names model and input as the client did.
    std::string for_named_model() const {
        return "for model " + as_sent(scan.model_name, scan.model_name_cut);
    }

    Status examine();
    Status examine_tensors();
    Status examine_emptiness();
    Status examine_parameters() const;
    void hash_names_secretly();
    Status add_inputs();
    Status add_data();
    Status add_contents(const ScannedInput& scanned, Input* input);
    Status examine_outputs() const;
    Status examine_class_results() const;
    Status examine_requested(const ScannedOutput& output);
    Status examine_input_names() const;
    Status find_batch_size();
    Status examine_batch_size() const;
    Status examine_type_and_shape(const std::string& name, const Input& input) const;
    Status examine_size(const std::string& name, const Input& input) const;
    Status examine_strings(const std::string& name, const Input& input, std::int64_t count) const;
    Status examine_last_string(const std::string& name, const Input& input) const;
    std::vector<std::int64_t> sized_dims(const Input& input) const;
};

}  // namespace infersched::kserve
