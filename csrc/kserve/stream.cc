// Messages of ModelStreamInfer: one request or reply each, told apart by their ids.
#include "kserve/parameter.h"
#include "kserve/prepared_request.h"
#include "kserve/request_check.h"
#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::kserve {

namespace {

using State = RequestAccess::State;

// Shorter runs are cheaper to copy than to refer to.
constexpr std::size_t kCopyMax = 1024;
constexpr std::string_view kEmptyFinal = "triton_enable_empty_final_response";
constexpr std::string_view kFinal = "triton_final_response";

// Fields of ModelStreamInferResponse.
constexpr std::uint8_t kErrorMessage = wire_tag(1, kLengthDelimited);
constexpr std::uint8_t kResponse = wire_tag(2, kLengthDelimited);
// Fields of both ModelInferRequest and ModelInferResponse.
constexpr std::uint8_t kModelName = wire_tag(1, kLengthDelimited);
constexpr std::uint8_t kModelVersion = wire_tag(2, kLengthDelimited);
constexpr std::uint8_t kId = wire_tag(3, kLengthDelimited);
constexpr std::uint8_t kParameters = wire_tag(4, kLengthDelimited);

void append_field(std::uint8_t tag, std::string_view text, Pieces* message) {
    if (text.empty()) return;
    put_field(message->append_space(field_bytes(text.size())), tag, text);
}

std::size_t text_field_bytes(std::string_view text) {
    return text.empty() ? 0 : field_bytes(text.size());
}

// The start of a field of `size` bytes.
void append_head(std::uint8_t tag, std::size_t size, Pieces* message) {
    std::uint8_t* at = message->append_space(1 + varint_bytes(size));
    *at++ = tag;
    put_varint(at, size);
}

constexpr std::uint8_t kTrue[] = {wire_tag(1, kVarint), 1};
constexpr std::uint8_t kFalse[] = {wire_tag(1, kVarint), 0};

std::size_t flag_entry_bytes(std::string_view key) {
    return field_bytes(key.size()) + field_bytes(sizeof kTrue);
}

// An entry of the parameters: {key, bool}.
void append_flag(std::string_view key, bool flag, Pieces* message) {
    append_head(kParameters, flag_entry_bytes(key), message);
    append_field(wire_tag(1, kLengthDelimited), key, message);
    append_field(wire_tag(2, kLengthDelimited), Span{flag ? kTrue : kFalse, sizeof kTrue}.text(),
                 message);
}

// Whether an entry of the parameters, with its tag, is that of `priority`.
bool names_priority(Span field) {
    WireReader reader(field);
    std::uint32_t tag = 0;
    Span entry;
    Parameter parameter;
    return reader.read_tag(&tag) && reader.read_bytes(&entry) &&
           read_parameter(entry, 1, &parameter) && parameter.key == "priority";
}

void append_part(const BufferRef& owner, Span part, Pieces* message) {
    if (part.size <= kCopyMax) {
        message->append_copy(part);
    } else {
        message->append_reference(owner, part);
    }
}

// Everything of the response that is of interest here; the tensors are stepped over.
bool scan_response(StreamReply* reply) {
    reply->empty = true;
    // A refusal has no parameters: it is all that comes.
    reply->final = !reply->error_message.empty();
    WireReader reader(reply->response);
    while (!reader.done()) {
        const std::uint8_t* field_begin = reader.at();
        std::uint32_t tag = 0;
        if (!reader.read_tag(&tag)) return false;
        if ((tag & 7) != kLengthDelimited) {
            if (!reader.skip(tag, 1)) return false;
            continue;
        }
        Span field;
        if (!reader.read_bytes(&field)) return false;
        if (tag == kId) {
            reply->id = field.text();
            reply->id_field = {field_begin, static_cast<std::size_t>(reader.at() - field_begin)};
        } else if (tag == kParameters) {
            Parameter parameter;
            if (!read_parameter(field, 2, &parameter)) return false;
            if (parameter.key == kFinal) {
                reply->final = parameter.kind == ParameterKind::kBool && parameter.bits != 0;
            }
        } else if (tag >> 3 == 5) {
            reply->empty = false;
        }
    }
    return true;
}

bool scan_stream_reply(Span message, StreamReply* reply) {
    bool has_response = false;
    WireReader reader(message);
    while (!reader.done()) {
        std::uint32_t tag = 0;
        Span field;
        if (!reader.read_tag(&tag)) return false;
        if (tag == kErrorMessage) {
            if (!reader.read_bytes(&field)) return false;
            reply->error_message = field.text();
        } else if (tag == kResponse) {
            // Protobuf would merge several; no server sends them.
            if (has_response || !reader.read_bytes(&reply->response)) return false;
            has_response = true;
        } else if (!reader.skip(tag, 0)) {
            return false;
        }
    }
    return scan_response(reply);
}

// The text with the client's id in place of ours.
std::string with_id(std::string_view text, std::string_view our_id, std::string_view id) {
    std::string result(text);
    const std::string ours = request_prefix(our_id);
    const std::size_t at = result.find(ours);
    if (at != std::string::npos) result.replace(at, ours.size(), request_prefix(id));
    return result;
}

}  // namespace

void write_stream_request(const PreparedRequest& request, std::string_view id, bool empty_final,
                          Pieces* message) {
    const State& state = RequestAccess::state(request);
    forward_request(state, message);
    // Triton's own batcher takes requests of decoupled models by it.
    for (const Span& field : state.consumed_fields) {
        if (names_priority(field)) append_part(state.message, field, message);
    }
    // Of repeated fields and map entries the last one counts.
    if (id != state.whole_id) append_field(kId, id, message);
    if (state.scheduling.wants_empty_final != empty_final) {
        append_flag(kEmptyFinal, empty_final, message);
    }
}

bool read_stream_reply(const BufferRef& message, StreamReply* reply, std::string* error) {
    *reply = StreamReply();
    reply->message = message;
    if (!scan_stream_reply(message.span(), reply)) {
        *error = "reply is not a ModelStreamInferResponse";
        return false;
    }
    reply->empty = reply->empty && reply->final && reply->error_message.empty();
    return true;
}

void write_stream_reply(const StreamReply& reply, std::string_view our_id,
                        std::string_view whole_id, Pieces* message) {
    const std::string_view cut_id = until_nul(whole_id);
    const bool of_backend = reply.error_message.empty() && !reply.empty;
    const std::string_view id = of_backend ? cut_id : whole_id;
    if (!reply.error_message.empty()) {
        append_field(kErrorMessage, with_id(reply.error_message, our_id, cut_id), message);
    }
    if (reply.response.data == nullptr) return;
    const Span whole = reply.response;
    const std::uint8_t* const end = whole.data + whole.size;
    const std::uint8_t* const cut = reply.id_field.empty() ? end : reply.id_field.data;
    const std::uint8_t* const rest = cut + reply.id_field.size;
    const Span before{whole.data, static_cast<std::size_t>(cut - whole.data)};
    const Span after{rest, static_cast<std::size_t>(end - rest)};
    const std::size_t size = before.size + text_field_bytes(id) + after.size;
    if (size <= kCopyMax) {
        std::uint8_t* at = message->append_space(field_bytes(size));
        *at++ = kResponse;
        at = put_bytes(put_varint(at, size), before.text());
        if (!id.empty()) at = put_field(at, kId, id);
        put_bytes(at, after.text());
        return;
    }
    append_head(kResponse, size, message);
    append_part(reply.message, before, message);
    append_field(kId, id, message);
    append_part(reply.message, after, message);
}

void wrap_stream_reply(Pieces* message) {
    Pieces wrapped;
    append_head(kResponse, message->size() + field_bytes(flag_entry_bytes(kFinal)), &wrapped);
    if (message->size() <= kCopyMax) {
        for (std::size_t i = 0; i < message->count(); ++i) wrapped.append_copy(message->piece(i));
    } else {
        wrapped.append(std::move(*message));
    }
    append_flag(kFinal, true, &wrapped);
    *message = std::move(wrapped);
}

void write_stream_error(std::string_view text, std::string_view id, Pieces* message) {
    append_field(kErrorMessage, text, message);
    append_head(kResponse, text_field_bytes(id), message);
    append_field(kId, id, message);
}

void write_stream_failure(const PreparedRequest& request, std::string_view text, Pieces* message) {
    ModelName asked;
    if (!peek_model(RequestAccess::state(request).message.span(), &asked)) return;
    append_field(kErrorMessage, text, message);
    append_head(kResponse,
                text_field_bytes(asked.whole_name) + text_field_bytes(asked.whole_version) +
                    text_field_bytes(asked.whole_id) + field_bytes(flag_entry_bytes(kFinal)),
                message);
    append_field(kModelName, asked.whole_name, message);
    append_field(kModelVersion, asked.whole_version, message);
    append_field(kId, asked.whole_id, message);
    append_flag(kFinal, true, message);
}

}  // namespace infersched::kserve
