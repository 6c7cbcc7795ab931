// The answer of one member, cut out of the reply (or the replies) to its batch (or batches).
#include "kserve/parameter.h"
#include "kserve/prepared_request.h"
#include "kserve/reply.h"
#include "kserve/signature.h"
#include "kserve/trim.h"
#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

using RequestState = RequestAccess::State;
using ReplyState = ReplyAccess::State;

// Shorter runs are cheaper to copy than to refer to.
constexpr std::size_t kCopyMax = 1024;

bool is_wanted(const RequestState& request, const ReplyOutput& output) {
    if (request.outputs.empty()) return true;
    for (const std::uint32_t wanted : request.outputs) {
        if (request.signature->output_names[wanted] == output.name) return true;
    }
    return false;
}

Span rows_of(ReplyOutput* output, const ReplyRows& part) {
    if (output->is_bytes) {
        return string_rows(output->data, output->elements_per_row, part.row_begin, part.rows,
                           &output->cursor);
    }
    return {output->data.data + part.row_begin * output->row_bytes, part.rows * output->row_bytes};
}

// The output `name` of a reply, nullptr when it has none; `guess` is where it probably is.
ReplyOutput* find_output(ReplyState* reply, std::string_view name, std::uint32_t guess) {
    if (guess < reply->outputs.size() && reply->outputs[guess].name == name)
        return &reply->outputs[guess];
    for (ReplyOutput& output : reply->outputs) {
        if (output.name == name) return &output;
    }
    return nullptr;
}

std::uint32_t count_wanted(const RequestState& request, const ReplyState& reply) {
    if (request.outputs.empty()) return reply.outputs.size();
    std::uint32_t count = 0;
    for (const ReplyOutput& output : reply.outputs) count += is_wanted(request, output) ? 1 : 0;
    return count;
}

// Whether the outputs that the request wants are the same in two replies. Others may differ: each
// part was merged with requests that wanted something else.
bool check_outputs(const RequestState& request, const ReplyState& first, ReplyState* other,
                   std::string* error) {
    if (count_wanted(request, first) != count_wanted(request, *other)) {
        *error = "replies to the parts have different outputs";
        return false;
    }
    for (std::uint32_t o = 0; o < first.outputs.size(); ++o) {
        const ReplyOutput& a = first.outputs[o];
        if (!is_wanted(request, a)) continue;
        const ReplyOutput* b = find_output(other, a.name, o);
        const bool same = b != nullptr && a.data_type == b->data_type &&
                          first.text(a.tail_dims) == other->text(b->tail_dims);
        if (same) continue;
        *error = "replies to the parts disagree about output '" + std::string(a.name) + "'";
        return false;
    }
    return true;
}

// Whether the parts can be put together: same outputs of same datatype and row shape.
bool check_parts(const RequestState& request, const ReplyRows* parts, std::size_t count,
                 std::uint32_t* rows, std::string* error) {
    const ReplyState& first = ReplyAccess::state(*parts[0].reply);
    *rows = 0;
    for (std::size_t i = 0; i < count; ++i) {
        ReplyState& state = ReplyAccess::state(*parts[i].reply);
        const std::uint64_t row_end = std::uint64_t{parts[i].row_begin} + parts[i].rows;
        if (row_end > state.rows) {
            *error = "reply has fewer rows than were asked for";
            return false;
        }
        if (i != 0 && !check_outputs(request, first, &state, error)) return false;
        *rows += parts[i].rows;
    }
    return true;
}

std::uint8_t* put_output(std::uint8_t* at, const ReplyState& reply, const ReplyOutput& output,
                         const Cut* cut, std::uint32_t rows) {
    const std::size_t dims_bytes =
        cut != nullptr ? cut_dims_bytes(reply, output, *cut) : output.tail_dims.size;
    const std::size_t shape_bytes = varint_bytes(rows) + dims_bytes;
    const std::size_t size = output.head.size + field_bytes(shape_bytes) + output.parameters.size;
    *at++ = wire_tag(5, kLengthDelimited);
    at = put_varint(at, size);
    at = put_bytes(at, reply.text(output.head));
    *at++ = wire_tag(3, kLengthDelimited);
    at = put_varint(at, shape_bytes);
    at = put_varint(at, rows);
    at = cut != nullptr ? put_cut_dims(at, reply, output, *cut)
                        : put_bytes(at, reply.text(output.tail_dims));
    return put_bytes(at, reply.text(output.parameters));
}

void append_header(const RequestState& request, const ReplyState& reply, std::uint32_t rows,
                   Pieces* message) {
    // Tags, lengths and dimension 0 of an output take at most 1 + 5 + 1 + 5 + 5 bytes.
    std::size_t bytes_max = reply.bytes.size() + request.id.size() + 6 + 17 * reply.outputs.size();
    std::uint8_t* const begin = message->append_space(bytes_max);
    std::uint8_t* at = put_bytes(begin, reply.text(reply.head));
    if (!request.id.empty()) at = put_field(at, wire_tag(3, kLengthDelimited), request.id);
    at = put_bytes(at, reply.text(reply.parameters));
    for (const ReplyOutput& output : reply.outputs) {
        if (!is_wanted(request, output)) continue;
        Cut cut;
        const bool is_cut = request.trimmed && find_cut(request, reply, output, &cut);
        at = put_output(at, reply, output, is_cut ? &cut : nullptr, rows);
    }
    message->shrink_space(bytes_max - static_cast<std::size_t>(at - begin));
}

void append_tensor_head(std::size_t bytes, Pieces* message) {
    std::uint8_t* const begin = message->append_space(11);
    begin[0] = wire_tag(6, kLengthDelimited);
    const std::uint8_t* end = put_varint(begin + 1, bytes);
    message->shrink_space(11 - static_cast<std::size_t>(end - begin));
}

void append_run(const BufferRef& owner, Span run, Pieces* message) {
    if (run.size <= kCopyMax) {
        message->append_copy(run);
    } else {
        message->append_reference(owner, run);
    }
}

// Field 6: the rows of one output, from the only part there is.
void append_only_tensor(const ReplyRows& part, std::uint32_t index, Pieces* message) {
    ReplyState& reply = ReplyAccess::state(*part.reply);
    ReplyOutput* const output = &reply.outputs[index];
    const Span rows = rows_of(output, part);
    append_tensor_head(rows.size, message);
    append_run(reply.owner(*output), rows, message);
}

// Likewise from several parts, which all have it. `guess` is where it probably is.
void append_tensor(const ReplyRows* parts, std::size_t count, std::string_view name,
                   std::uint32_t guess, Pieces* message) {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < count; ++i) {
        // A copy: measuring must not move the cursor.
        ReplyOutput output = *find_output(&ReplyAccess::state(*parts[i].reply), name, guess);
        bytes += rows_of(&output, parts[i]).size;
    }
    append_tensor_head(bytes, message);
    for (std::size_t i = 0; i < count; ++i) {
        ReplyState& reply = ReplyAccess::state(*parts[i].reply);
        ReplyOutput* const output = find_output(&reply, name, guess);
        append_run(reply.owner(*output), rows_of(output, parts[i]), message);
    }
}

// Likewise of an output that is cut.
void append_cut_tensor(const ReplyRows* parts, std::size_t count, std::string_view name,
                       std::uint32_t guess, const Cut& cut, Pieces* message) {
    KeptRuns runs;
    for (std::size_t i = 0; i < count; ++i) {
        ReplyState& reply = ReplyAccess::state(*parts[i].reply);
        ReplyOutput* output = find_output(&reply, name, guess);
        keep_runs(reply, *output, rows_of(output, parts[i]), parts[i].rows, cut, &runs);
    }
    std::size_t bytes = 0;
    for (const KeptRun& run : runs) bytes += run.bytes.size;
    append_tensor_head(bytes, message);
    for (const KeptRun& run : runs) append_run(*run.owner, run.bytes, message);
}

// The reply as it came, with the request's own id.
void forward(const RequestState& request, const ReplyState& reply, Pieces* message) {
    const Span whole = reply.message.span();
    if (reply.id == request.id) {
        message->append_reference(reply.message, whole);
        return;
    }
    const std::uint8_t* at = whole.data;
    for (const Span& field : reply.id_fields) {
        message->append_reference(reply.message, {at, static_cast<std::size_t>(field.data - at)});
        at = field.data + field.size;
    }
    const std::uint8_t* end = whole.data + whole.size;
    message->append_reference(reply.message, {at, static_cast<std::size_t>(end - at)});
    if (request.id.empty()) return;
    const std::size_t bytes_max = 6 + request.id.size();
    std::uint8_t* const begin = message->append_space(bytes_max);
    std::uint8_t* after = put_field(begin, wire_tag(3, kLengthDelimited), request.id);
    message->shrink_space(bytes_max - static_cast<std::size_t>(after - begin));
}

// Likewise of a reply that cannot be split and has outputs in shared memory.
void write_whole(const RequestState& request, const ReplyState& reply, Pieces* message) {
    const auto put_text = [message](std::string_view text) { message->append_copy(span_of(text)); };
    std::string head(reply.text(reply.head));
    if (!request.id.empty()) append_field(&head, wire_tag(3, kLengthDelimited), request.id);
    put_text(head);
    put_text(reply.text(reply.parameters));
    for (const ReplyOutput& output : reply.outputs) {
        std::string body(reply.text(output.head));
        std::string dims;
        for (std::uint32_t i = 0; i < output.dims_count; ++i) {
            std::uint8_t dim[10];
            const std::uint8_t* end =
                put_varint(dim, static_cast<std::uint64_t>(reply.dims[output.dims_first + i]));
            dims.append(reinterpret_cast<char*>(dim), static_cast<std::size_t>(end - dim));
        }
        if (!dims.empty()) append_field(&body, wire_tag(3, kLengthDelimited), dims);
        body += reply.text(output.parameters);
        std::string field;
        append_field(&field, wire_tag(5, kLengthDelimited), body);
        put_text(field);
    }
    for (const ReplyOutput& output : reply.outputs) {
        append_tensor_head(output.data.size, message);
        append_run(reply.owner(output), output.data, message);
    }
}

// Whether a reply that needs no splitting must be cut back to the request's own lengths.
bool cuts_whole(const RequestState& request, const Reply& reply) {
    if (!request.trimmed) return false;
    std::string ignored;
    return ReplyAccess::state(reply).split(request.rows, &ignored);
}

}  // namespace

bool write_reply(const PreparedRequest& request, const ReplyRows* parts, std::size_t count,
                 bool whole, Pieces* message, std::string* error) {
    const RequestState& state = RequestAccess::state(request);
    if (count == 0) {
        *error = "request has no reply";
        return false;
    }
    const ReplyState& first = ReplyAccess::state(*parts[0].reply);
    if (whole && !cuts_whole(state, *parts[0].reply)) {
        if (first.blocks.empty())
            forward(state, first, message);
        else
            write_whole(state, first, message);
        return true;
    }
    std::uint32_t rows = 0;
    if (!check_parts(state, parts, count, &rows, error)) return false;
    append_header(state, first, rows, message);
    for (std::uint32_t i = 0; i < first.outputs.size(); ++i) {
        if (!is_wanted(state, first.outputs[i])) continue;
        const ReplyOutput& output = first.outputs[i];
        Cut cut;
        if (state.trimmed && find_cut(state, first, output, &cut)) {
            append_cut_tensor(parts, count, output.name, i, cut, message);
        } else if (count == 1) {
            append_only_tensor(parts[0], i, message);
        } else {
            append_tensor(parts, count, output.name, i, message);
        }
    }
    return true;
}

}  // namespace infersched::kserve
