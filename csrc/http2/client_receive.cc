// What a client session does while it is fed: answers are put together, windows credited.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "http2/client_state.h"
#include "http2/headers.h"
#include "http2/memory.h"

namespace infersched::http2 {

namespace {
constexpr std::size_t kHeaderBytesMax = 64u << 10;  // of one block of an answer
constexpr std::size_t kHeaderOverheadBytes = 32;

Status not_sent() { return Status::error(StatusCode::kUnavailable, "the call was not sent"); }
}  // namespace

Status status_of_reset(std::uint32_t http2_error_code) {
    const std::string text =
        std::string("RST_STREAM with ") + nghttp2_http2_strerror(http2_error_code);
    switch (http2_error_code) {
        case NGHTTP2_REFUSED_STREAM:
            return Status::error(StatusCode::kUnavailable, text);
        case NGHTTP2_CANCEL:
            return Status::error(StatusCode::kCancelled, text);
        case NGHTTP2_ENHANCE_YOUR_CALM:
            return Status::error(StatusCode::kResourceExhausted, text);
        case NGHTTP2_INADEQUATE_SECURITY:
            return Status::error(StatusCode::kPermissionDenied, text);
        default:
            return Status::error(StatusCode::kInternal, text);
    }
}

StatusCode status_of_http(unsigned http_status) {
    switch (http_status) {
        case 400:
            return StatusCode::kInternal;
        case 401:
            return StatusCode::kUnauthenticated;
        case 403:
            return StatusCode::kPermissionDenied;
        case 404:
            return StatusCode::kUnimplemented;
        case 429:
        case 502:
        case 503:
        case 504:
            return StatusCode::kUnavailable;
        default:
            return StatusCode::kUnknown;
    }
}

const nghttp2_session_callbacks* ClientSession::State::callbacks() {
    static const nghttp2_session_callbacks* const shared = [] {
        nghttp2_session_callbacks* made = make_callbacks();
        nghttp2_session_callbacks_set_on_begin_headers_callback(made, on_begin_headers);
        nghttp2_session_callbacks_set_on_header_callback(made, on_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data);
        nghttp2_session_callbacks_set_on_frame_recv_callback(made, on_frame);
        nghttp2_session_callbacks_set_on_frame_send_callback(made, on_frame_sent);
        nghttp2_session_callbacks_set_on_stream_close_callback(made, on_stream_close);
        return made;
    }();
    return shared;
}

ClientSession::State::State(const ClientConfig& the_config) : config(the_config) {
    static const nghttp2_option* const options = make_options();
    if (nghttp2_session_client_new3(&session, callbacks(), this, options, session_memory()) != 0)
        std::abort();
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, config.stream_window_bytes},
        {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, config.frame_bytes_max},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings));
    nghttp2_session_set_local_window_size(
        session, NGHTTP2_FLAG_NONE, 0, static_cast<std::int32_t>(config.connection_window_bytes));
    sendable = true;
}

int ClientSession::State::on_begin_headers(nghttp2_session*, const nghttp2_frame* frame,
                                           void* pointer) {
    auto* state = static_cast<State*>(pointer);
    state->block_stream_ = state->find(frame->hd.stream_id);
    if (state->block_stream_ != nullptr) {
        state->block_stream_->header_bytes = 0;
        state->block_stream_->headers.clear();
    }
    return 0;
}

int ClientSession::State::on_header(nghttp2_session*, const nghttp2_frame*,
                                    const std::uint8_t* name, std::size_t name_size,
                                    const std::uint8_t* value, std::size_t value_size, std::uint8_t,
                                    void* pointer) {
    auto* state = static_cast<State*>(pointer);
    Stream* stream = state->block_stream_;
    if (stream == nullptr || stream->finished) return 0;
    const std::size_t size = name_size + value_size + kHeaderOverheadBytes;
    if (size > kHeaderBytesMax - stream->header_bytes) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    stream->header_bytes += static_cast<std::uint32_t>(size);
    const std::string_view name_text = view(name, name_size);
    const std::string_view value_text = view(value, value_size);
    if (stream->kind == StreamKind::kForward) {
        if (!is_hop_header(name_text)) stream->headers.emplace_back(name_text, value_text);
        if (name_text != ":status") return 0;
    }
    state->receive_reply_header(stream, name_text, value_text);
    return 0;
}

void ClientSession::State::receive_reply_header(Stream* stream, std::string_view name,
                                                std::string_view value) {
    std::uint64_t number = 0;
    if (name == ":status") {
        if (parse_decimal(value, &number)) stream->http_status = static_cast<std::uint16_t>(number);
    } else if (name == "content-type") {
        stream->reply_grpc = is_grpc_content_type(value);
    } else if (name == "grpc-encoding") {
        // An encoding we did not offer: its messages are flagged, and refused for that.
        Compression encoding = Compression::kNone;
        parse_encoding(value, &encoding);
        stream->in.set_encoding(encoding);
    } else if (name == "grpc-status") {
        stream->status_seen = true;
        const bool known = parse_decimal(value, &number) && number <= 16;
        stream->status.code = known ? static_cast<StatusCode>(number) : StatusCode::kUnknown;
    } else if (name == "grpc-message") {
        stream->status.message = percent_decode(value);
    } else if (name == "grpc-status-details-bin") {
        if (!base64_decode(value, &stream->status.details)) stream->status.details.clear();
    } else if (name == "grpc-retry-pushback-ms") {
        if (parse_decimal(value, &number) && number <= INT32_MAX)
            stream->status.retry_pushback_ms = static_cast<std::int64_t>(number);
    } else if (stream->kind != StreamKind::kForward && is_custom_metadata(name)) {
        stream->headers.emplace_back(name, value);
    }
}

int ClientSession::State::on_data(nghttp2_session* session, std::uint8_t, std::int32_t id,
                                  const std::uint8_t* data, std::size_t size, void* pointer) {
    auto* state = static_cast<State*>(pointer);
    const std::size_t frame_left = state->take_frame_bytes(size);
    nghttp2_session_consume_connection(session, size);
    Stream* stream = state->find(id);
    if (stream == nullptr || stream->finished) return 0;
    if (stream->kind == StreamKind::kForward) {
        stream->uncredited_bytes += size;
        state->events.push(EventKind::kForwardData, id)->message = BufferRef::copy_of({data, size});
    } else if (stream->http_status != 200 || !stream->reply_grpc) {
        return 0;  // the body of an answer that is not gRPC's is no message
    } else if (stream->kind == StreamKind::kMessages) {
        state->receive_messages(stream, {data, size}, frame_left);
    } else {
        state->receive_unary_data(stream, {data, size}, frame_left);
    }
    return 0;
}

void ClientSession::State::receive_unary_data(Stream* stream, Span bytes, std::size_t frame_left) {
    stream->uncredited_bytes += bytes.size;
    FramingError error = stream->in.feed(&bytes, &frame_left, {config.message_bytes_max});
    if (error == FramingError::kNone && !bytes.empty()) error = FramingError::kSecondMessage;
    if (error != FramingError::kNone) {
        fail_framing(stream, error);
        return;
    }
    credit_partial(stream, config.stream_window_bytes);
}

void ClientSession::State::fail_framing(Stream* stream, FramingError error) {
    fail_call(stream, framing_status(error, stream->in, config.message_bytes_max), false);
    if (!stream->closed) reset(stream, NGHTTP2_CANCEL);
}

void ClientSession::State::headers_done(Stream* stream, bool end_stream) {
    if (stream->finished || stream->http_status < 200) return;  // informational
    if (stream->kind != StreamKind::kForward) {
        if (!stream->headers.empty())
            (end_stream ? stream->answer.trailers : stream->answer.headers).swap(stream->headers);
        return;
    }
    if (end_stream) {
        events.push(EventKind::kForwardTrailers, stream->id)->headers = std::move(stream->headers);
        stream->finished = true;
    } else if (!stream->headers_seen) {
        events.push(EventKind::kForwardHeaders, stream->id)->headers = std::move(stream->headers);
    }
    stream->headers.clear();
    stream->headers_seen = true;
}

void ClientSession::State::remote_ended(Stream* stream) {
    stream->remote_ended = true;
    if (!stream->finished) {
        if (stream->kind == StreamKind::kForward) {
            // Ended by DATA, without trailers.
            events.push(EventKind::kForwardTrailers, stream->id);
            stream->finished = true;
        } else {
            finish_call(stream);
        }
    }
    // What we have not sent is of no use any more.
    if (stream->out.remaining() > 0 || stream->body_end == BodyEnd::kOpen)
        reset(stream, NGHTTP2_CANCEL);
}

int ClientSession::State::on_frame(nghttp2_session*, const nghttp2_frame* frame, void* pointer) {
    auto* state = static_cast<State*>(pointer);
    const bool end_stream = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    switch (frame->hd.type) {
        case NGHTTP2_HEADERS:
        case NGHTTP2_DATA: {
            Stream* stream = state->find(frame->hd.stream_id);
            if (stream == nullptr) return 0;
            if (frame->hd.type == NGHTTP2_HEADERS) state->headers_done(stream, end_stream);
            if (end_stream) state->remote_ended(stream);
            return 0;
        }
        case NGHTTP2_RST_STREAM:
            if (Stream* stream = state->find(frame->hd.stream_id)) stream->peer_reset = true;
            return 0;
        case NGHTTP2_SETTINGS:
            if ((frame->hd.flags & NGHTTP2_FLAG_ACK) == 0) state->settings_seen_ = true;
            return 0;
        case NGHTTP2_GOAWAY:
            state->goaway_seen_ = true;
            state->fail_unsent();
            return 0;
        default:
            return 0;
    }
}

// Calls that wait for a free stream would wait for ever: none starts after a GOAWAY.
void ClientSession::State::fail_unsent() {
    for (const auto& [id, stream] : unsent_) {
        if (stream->finished) continue;
        if (stream->kind == StreamKind::kForward) {
            events.push(EventKind::kForwardReset, id);
        } else {
            fail_call(stream, not_sent(), true);
        }
        reset(stream, NGHTTP2_CANCEL);
    }
}

Event* ClientSession::State::fail_call(Stream* stream, Status status, bool nothing_ran) {
    Event* event = events.push(EventKind::kReply, stream->id);
    event->status = std::move(status);
    event->nothing_ran = nothing_ran;
    stream->finished = true;
    stream->in.clear();
    return event;
}

void ClientSession::State::finish_call(Stream* stream) {
    if (!stream->status_seen) {
        const StatusCode code =
            stream->http_status == 200 ? StatusCode::kUnknown : status_of_http(stream->http_status);
        fail_call(stream,
                  Status::error(code, "no grpc-status in the reply (HTTP status " +
                                          std::to_string(stream->http_status) + ")"),
                  false);
        return;
    }
    const bool whole =
        stream->kind == StreamKind::kMessages ? !stream->in.started() : stream->in.complete();
    if (stream->status.ok() && !whole) {
        fail_call(stream, Status::error(StatusCode::kInternal, "the reply has no whole message"),
                  false);
        return;
    }
    Event* event = events.push(EventKind::kReply, stream->id);
    event->status = std::move(stream->status);
    event->answered = true;
    event->answer.trailers = std::move(stream->answer.trailers);
    if (!stream->has_ready()) event->answer.headers = std::move(stream->answer.headers);
    if (stream->in.complete() && stream->kind == StreamKind::kUnary)
        event->message = stream->in.take();
    stream->finished = true;
}

int ClientSession::State::on_frame_sent(nghttp2_session*, const nghttp2_frame* frame,
                                        void* pointer) {
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    auto* state = static_cast<State*>(pointer);
    const auto found = state->unsent_.find(frame->hd.stream_id);
    if (found == state->unsent_.end()) return 0;
    found->second->headers_sent = true;
    state->unsent_.erase(found);
    return 0;
}

int ClientSession::State::on_stream_close(nghttp2_session*, std::int32_t id, std::uint32_t code,
                                          void* pointer) {
    auto* state = static_cast<State*>(pointer);
    Stream* stream = state->find_call(id);
    if (stream != nullptr) state->close_stream(stream, code);
    return 0;
}

void ClientSession::State::close_stream(Stream* stream, std::uint32_t code) {
    if (stream->closed) return;
    stream->closed = true;
    --open_streams;
    if (block_stream_ == stream) block_stream_ = nullptr;
    if (!stream->headers_sent) unsent_.erase(stream->id);
    drop_body(stream);
    if (stream->kind == StreamKind::kMessages) {
        stream->in.clear();
        untaken(std::exchange(stream->charged_bytes, 0), 0);
    }
    if (!stream->finished && stream->kind == StreamKind::kForward) {
        events.push(EventKind::kForwardReset, stream->id);
    } else if (!stream->finished && !stream->headers_sent) {
        fail_call(stream, not_sent(), true);
    } else if (!stream->finished) {
        // A reply that breaks HTTP/2 or our bounds is reset by nghttp2.
        fail_call(stream, status_of_reset(code), code == NGHTTP2_REFUSED_STREAM)->reset =
            stream->peer_reset;
    }
    stream->finished = true;
    drop_if_unused(stream);
}

}  // namespace infersched::http2
