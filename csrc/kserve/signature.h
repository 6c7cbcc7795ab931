// What all members of a batch have in common, and the table that gives it one identity.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "kserve/codec.h"
#include "kserve/padding.h"
#include "kserve/request_check.h"

namespace infersched::kserve {

struct SignatureInput {
    std::string head;           // fields name and datatype, as written
    std::string tail_dims;      // shape without dimension 0, as packed varints
    std::string parameters;     // fields of its own parameters
    std::size_t row_bytes = 0;  // of a type of fixed size
    std::uint64_t elements_per_row = 0;
    bool is_bytes = false;              // BYTES: rows have no common size
    std::unique_ptr<PadLayout> layout;  // of a padded or filled-in input
};

// An output that is as long as a padded input, and is cut back to its length.
struct Trim {
    std::uint32_t output;  // index into Signature::output_names
    std::uint32_t input;   // index into Signature::inputs
    std::uint32_t axis;    // 0 = the first after the batch dimension
};

class Signature {
  public:
    std::uint64_t id = 0;
    std::string key;   // canonical: equal exactly for requests that may share a batch
    std::string head;  // the message's fields up to its inputs, without id
    std::vector<SignatureInput> inputs;
    std::vector<std::string> output_names;   // all of the model, in its order
    std::vector<std::string> output_fields;  // the request's field 6 that asks for each of them
    std::vector<Trim> trims;
    std::uint64_t row_bytes = 0;  // as PreparedRequest::row_bytes()
};

// PreparedRequest::row_bytes() of one that shares no batch.
std::uint64_t lone_row_bytes(const RequestScan& scan, const ModelSchema& schema,
                             const CheckedRequest& checked);

struct SignatureTable::State {
    std::unordered_multimap<std::uint64_t, SignatureRef> by_hash;
    std::uint64_t id_last = 0;
    std::size_t key_bytes = 0;
    std::size_t sweep_at_count = 0;
    std::size_t sweep_at_bytes = 0;
    std::uint64_t seed = 0;
    SignatureRef latest;  // most requests are like the one before
    std::string key;      // scratch

    SignatureRef intern(const RequestScan& scan, const ModelSchema& schema,
                        const CheckedRequest& checked, std::string_view metadata);

  private:
    void sweep();
};

}  // namespace infersched::kserve
