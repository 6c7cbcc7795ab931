// The inside of Reply: a ModelInferResponse scanned once, and the parts of its answers that all of
// its members share, written once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kserve/codec.h"
#include "kserve/free_list.h"
#include "kserve/inline_array.h"
#include "kserve/schema.h"
#include "kserve/tensor_rows.h"

namespace infersched::kserve {

struct ByteRange {
    std::uint32_t first = 0;
    std::uint32_t size = 0;
};

struct ReplyOutput {
    std::string_view name;
    std::string_view data_type;
    std::uint32_t dims_first = 0;
    std::uint32_t dims_count = 0;
    ByteRange head;        // in Reply::State::bytes: fields name and datatype
    ByteRange parameters;  // likewise: its parameters, as received
    // Typed contents, in Reply::State::contents.
    std::uint32_t contents_first = 0;
    std::uint32_t contents_count = 0;
    Span data;                // raw bytes
    std::int32_t block = -1;  // that they lie in, in Reply::State::blocks
    // Set by splits_into:
    bool is_bytes = false;
    std::size_t row_bytes = 0;
    std::uint64_t elements_per_row = 0;
    ByteRange tail_dims;  // shape without dimension 0, as packed varints
    RowCursor cursor;
};

struct Reply::State {
    BufferRef message;
    BufferRef converted;            // typed contents as raw bytes
    std::vector<BufferRef> blocks;  // of outputs that came in shared memory
    std::string_view model_name;
    std::string_view model_version;
    std::string_view id;
    InlineArray<Span, 2> id_fields;  // where the message carries an id
    InlineArray<ReplyOutput, 4> outputs;
    InlineArray<std::int64_t, 16> dims;
    InlineArray<Span, 4> contents;
    InlineArray<std::uint8_t, 256> bytes;
    ByteRange head;        // model name and version
    ByteRange parameters;  // of the response, as received
    std::uint32_t raw_count = 0;
    std::uint32_t rows = 0;  // what splits_into agreed to

    void recycle();
    [[nodiscard]] bool scan(Span whole);
    // See Reply::splits_into.
    [[nodiscard]] bool split(std::uint32_t split_rows, std::string* error);
    [[nodiscard]] bool place(std::string_view name, const BufferRef& block, std::string* error);
    // What the bytes of an output lie in.
    const BufferRef& owner(const ReplyOutput& output) const {
        if (output.block >= 0) return blocks[static_cast<std::size_t>(output.block)];
        return converted ? converted : message;
    }
    void append_raw(Span field);
    std::string_view text(ByteRange range) const {
        return {reinterpret_cast<const char*>(bytes.data()) + range.first, range.size};
    }

  private:
    bool scan_output(Span field);
    void write_heads();
    void append(std::uint8_t tag, std::string_view value);
    bool scan_dims(Span packed);
    bool convert_contents(std::string* error);
    bool split_output(ReplyOutput* output, std::uint32_t split_rows, std::string* error);
};

struct ReplyAccess {
    using State = Reply::State;

    static Reply::State& state(const Reply& reply) { return *reply.state_; }
    static Reply::State* take();
    static void give(Reply::State* state);

  private:
    static constexpr std::size_t kKept = 256;
    static FreeList<Reply::State, kKept>& list();
};

}  // namespace infersched::kserve
