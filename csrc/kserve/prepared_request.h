// The inside of PreparedRequest, shared by the files that make, merge and answer requests.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kserve/codec.h"
#include "kserve/free_list.h"
#include "kserve/inline_array.h"
#include "kserve/tensor_rows.h"

namespace infersched::kserve {

struct RequestTensor {
    Span data;
    RowCursor cursor;      // BYTES only
    bool converted;        // `data` lies in State::converted, else in the message
    std::uint32_t length;  // of a padded input: its own; of a filled one: what it tells
};

struct PreparedRequest::State {
    BufferRef message;
    BufferRef converted;  // typed contents as raw bytes
    SignatureRef signature;
    SchedulingParameters scheduling;
    std::string_view id;
    std::string_view whole_id;
    std::string_view sequence_text;  // in the message or in `sequence_digits`
    char sequence_digits[20];
    std::vector<std::string_view> regions;
    std::uint32_t rows = 1;
    std::uint64_t row_bytes = 0;
    bool mergeable = false;
    bool trimmed = false;                  // some outputs of a batch are longer than this request's
    InlineArray<RequestTensor, 4> inputs;  // in the signature's order; only when mergeable
    InlineArray<std::uint32_t, 4> outputs;  // indices of Signature::output_names; empty: all
    InlineArray<Span, 2> consumed_fields;   // of the message; not forwarded

    void recycle();
};

struct RequestAccess {
    using State = PreparedRequest::State;

    static PreparedRequest::State& state(const PreparedRequest& request) { return *request.state_; }
    static PreparedRequest::State* take();
    static void give(PreparedRequest::State* state);

  private:
    static constexpr std::size_t kKept = 4096;
    static FreeList<PreparedRequest::State, kKept>& list();
};

// The message as it came, without the parameters that were meant for us.
void forward_request(const RequestAccess::State& state, Pieces* message);

}  // namespace infersched::kserve
