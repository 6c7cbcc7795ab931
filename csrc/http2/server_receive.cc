// What a server session does while it is fed. Callbacks only record: events, refusals to be sent
// and window credit; nothing is written here.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "base/error_details.h"
#include "http2/headers.h"
#include "http2/memory.h"
#include "http2/server_state.h"

namespace infersched::http2 {

namespace {

constexpr std::size_t kHeaderOverheadBytes = 32;  // RFC 9113, 6.5.2

// What the client of a paced request may send at once.
constexpr std::uint32_t kPacedWindowBytes = 128u << 10;
// Pacing makes nothing slower than 250 MB/s.
constexpr Nanos kPacedNsPerByte = 4;

bool contains(const std::vector<std::string>& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

// `entries`: names, and what names begin with, with a '*' at the end; none that is the transport's.
bool forwards(const std::vector<std::string>& entries, std::string_view name) {
    for (const std::string& entry : entries) {
        if (entry == name) return true;
        if (entry.back() != '*') continue;
        const std::string_view beginning(entry.data(), entry.size() - 1);
        if (name.substr(0, beginning.size()) == beginning && is_custom_metadata(name) &&
            name != kStreamErrorsHeader)
            return true;
    }
    return false;
}

// As Triton says it of what is not one message.
Status unparsable() { return Status::error(StatusCode::kInternal, "Unable to parse request"); }

Status malformed_timeout(std::string_view value) {
    return Status::error(StatusCode::kInternal,
                         "malformed grpc-timeout: '" + std::string(value) + "'");
}

Status unsupported_encoding(std::string_view value) {
    return Status::error(StatusCode::kUnimplemented,
                         "grpc-encoding '" + std::string(value) +
                             "' is not supported: send identity, deflate or gzip");
}

}  // namespace

const nghttp2_session_callbacks* ServerSession::State::callbacks() {
    static const nghttp2_session_callbacks* const shared = [] {
        nghttp2_session_callbacks* made = make_callbacks();
        nghttp2_session_callbacks_set_on_begin_headers_callback(made, on_begin_headers);
        nghttp2_session_callbacks_set_on_header_callback(made, on_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data);
        nghttp2_session_callbacks_set_on_frame_recv_callback(made, on_frame);
        nghttp2_session_callbacks_set_on_frame_send_callback(made, on_frame_sent);
        nghttp2_session_callbacks_set_on_frame_not_send_callback(made, on_frame_not_sent);
        nghttp2_session_callbacks_set_on_stream_close_callback(made, on_stream_close);
        return made;
    }();
    return shared;
}

ServerSession::State::State(const ServerConfig* the_config, ByteBudget* the_budget)
    : config(the_config), budget(the_budget) {
    static const nghttp2_option* const options = make_options();
    if (nghttp2_session_server_new3(&session, callbacks(), this, options, session_memory()) != 0)
        std::abort();
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, config->streams_max},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, config->stream_window_bytes},
        {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, config->frame_bytes_max},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, config->header_list_bytes_max},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings));
    nghttp2_session_set_local_window_size(
        session, NGHTTP2_FLAG_NONE, 0, static_cast<std::int32_t>(config->connection_window_bytes));
    sendable = true;
    unsent_budget = budget;
}

ServerSession::State::~State() {
    budget->used -= charged_bytes;
    budget->unsent -= unsent_bytes;
}

int ServerSession::State::on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame,
                                           void* pointer) {
    auto* state = static_cast<State*>(pointer);
    state->block_.clear();
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
    Stream* stream = state->streams.open(frame->hd.stream_id);
    stream->arrival = state->now;
    ++state->open_streams;
    nghttp2_session_set_stream_user_data(session, stream->id, stream);
    state->block_.stream = stream;
    return 0;
}

int ServerSession::State::on_header(nghttp2_session*, const nghttp2_frame*,
                                    const std::uint8_t* name, std::size_t name_size,
                                    const std::uint8_t* value, std::size_t value_size, std::uint8_t,
                                    void* pointer) {
    auto* state = static_cast<State*>(pointer);
    Stream* stream = state->block_.stream;
    if (stream == nullptr) return 0;  // trailers of a request carry nothing for us
    const std::size_t size = name_size + value_size + kHeaderOverheadBytes;
    const std::size_t bytes_max = state->config->header_list_bytes_max;
    if (size > bytes_max - std::min<std::size_t>(stream->header_bytes, bytes_max)) {
        stream->header_bytes = static_cast<std::uint32_t>(bytes_max);
        stream->refusal = Status::error(
            StatusCode::kResourceExhausted,
            "received metadata size exceeds limit of " + std::to_string(bytes_max) + " bytes");
        stream->headers.clear();
        return 0;
    }
    stream->header_bytes += static_cast<std::uint32_t>(size);
    const std::string_view name_text = view(name, name_size);
    if (name_text[0] == ':') {
        state->receive_pseudo_header(stream, name_text, view(value, value_size));
    } else {
        state->receive_header(stream, name_text, view(value, value_size));
    }
    if (!state->pause_input_) return 0;
    state->pause_input_ = false;
    return NGHTTP2_ERR_PAUSE;
}

void ServerSession::State::receive_pseudo_header(Stream* stream, std::string_view name,
                                                 std::string_view value) {
    if (name == ":path") {
        select_route(stream, value);
        if (stream->kind == StreamKind::kForward) stream->headers.emplace_back(name, value);
    } else if (name == ":method") {
        block_.post = value == "POST";
    } else if (name == ":authority") {
        block_.authority.assign(value);  // may come before the path
    }
}

void ServerSession::State::select_route(Stream* stream, std::string_view path) {
    const std::vector<Route>& routes = config->routes;
    std::size_t index = last_route_;
    if (index >= routes.size() || routes[index].path != path) {
        for (index = 0; index < routes.size() && routes[index].path != path;) ++index;
    }
    if (index == routes.size()) {
        stream->kind = StreamKind::kForward;
        return;
    }
    const Route& route = routes[index];
    last_route_ = stream->route = static_cast<std::uint16_t>(index);
    if (route.kind == RouteKind::kForward) stream->kind = StreamKind::kForward;
    if (route.kind == RouteKind::kMessageStream) stream->kind = StreamKind::kMessages;
    stream->in.set_shared(config->shared_alignment);
    if (route.kind == RouteKind::kUnimplemented)
        stream->refusal = Status::error(StatusCode::kUnimplemented, route.text);
}

void ServerSession::State::receive_header(Stream* stream, std::string_view name,
                                          std::string_view value) {
    if (name == "content-type") block_.grpc = is_grpc_content_type(value);
    if (stream->kind == StreamKind::kForward) {
        if (!is_hop_header(name) && !contains(config->internal_headers, name))
            stream->headers.emplace_back(name, value);
        return;
    }
    if (name == "grpc-timeout") {
        Nanos timeout = 0;
        if (parse_timeout(value, &timeout)) {
            stream->deadline = add_saturating(stream->arrival, timeout);
        } else if (stream->refusal.ok()) {
            stream->refusal = malformed_timeout(value);
        }
    } else if (name == "grpc-encoding") {
        Compression encoding = Compression::kNone;
        if (!parse_encoding(value, &encoding) && stream->refusal.ok())
            stream->refusal = unsupported_encoding(value);
        stream->in.set_encoding(encoding);
        if (encoding != Compression::kNone && !slices_input) slices_input = pause_input_ = true;
    } else if (name == "grpc-accept-encoding") {
        if (config->response_compression != Compression::kNone &&
            accepts_encoding(value, config->response_compression))
            stream->out_encoding = config->response_compression;
    } else {
        if (!config->forward_metadata.empty() && forwards(config->forward_metadata, name) &&
            !contains(config->internal_headers, name))
            stream->headers.emplace_back(name, value);
        if (!config->watched_headers.empty() && contains(config->watched_headers, name))
            stream->watched.emplace_back(name, value);
    }
}

// A compressed header of some bytes may stand for many kilobytes.
void ServerSession::State::charge_metadata(Stream* stream) {
    std::uint64_t bytes = 0;
    for (const Headers* headers : {&stream->headers, &stream->watched})
        for (const auto& [name, value] : *headers)
            bytes += name.size() + value.size() + kHeaderOverheadBytes;
    if (charge(bytes))
        stream->metadata_bytes = bytes;
    else
        stream->refusal = host_memory_refusal();
}

void ServerSession::State::request_headers_done(Stream* stream, bool end_stream) {
    stream->remote_ended = end_stream;
    update_throttle();
    if (!block_.post) {
        stream->http_status = 405;
        stream->refusal = Status::error(StatusCode::kInternal, "the method of gRPC is POST");
    } else if (!block_.grpc) {
        stream->http_status = 415;
        stream->refusal =
            Status::error(StatusCode::kInvalidArgument, "invalid gRPC request content-type");
    } else if (throttled && stream->refusal.ok()) {
        stream->refusal =
            Status::error(StatusCode::kResourceExhausted, "the client does not read its answers");
    }
    // What is forwarded is passed on at once.
    if (stream->refusal.ok() && stream->kind != StreamKind::kForward) charge_metadata(stream);
    if (!stream->refusal.ok()) {
        refuse(stream, Status(stream->refusal), nullptr);
    } else if (stream->kind == StreamKind::kForward) {
        Event* event = events.push(EventKind::kForwardHeaders, stream->id);
        event->route = stream->route;
        event->arrival = stream->arrival;
        event->end_stream = end_stream;
        event->headers = std::move(stream->headers);
        if (!block_.authority.empty()) event->headers.emplace_back(":authority", block_.authority);
        stream->announced = true;
    } else if (stream->kind == StreamKind::kMessages) {
        events.push(stream, EventKind::kStreamOpened);
        if (end_stream) messages_ended(stream);
    } else if (end_stream) {
        request_complete(stream);
    }
}

int ServerSession::State::on_data(nghttp2_session* session, std::uint8_t, std::int32_t id,
                                  const std::uint8_t* data, std::size_t size, void* pointer) {
    auto* state = static_cast<State*>(pointer);
    Stream* stream = state->find(id);
    const std::size_t frame_left = state->take_frame_bytes(size);
    if (stream != nullptr && !stream->finished) {
        if (stream->kind == StreamKind::kUnary) {
            state->receive_unary_data(stream, {data, size}, frame_left);
            return 0;
        }
        if (stream->kind == StreamKind::kMessages) {
            state->receive_messages(stream, {data, size}, frame_left);
            return 0;
        }
        if (stream->kind == StreamKind::kForward) {
            state->receive_forward_data(stream, {data, size});
            return 0;
        }
    }
    nghttp2_session_consume_connection(session, size);
    return 0;
}

Status ServerSession::State::host_memory_refusal() const {
    Status status =
        Status::error(StatusCode::kResourceExhausted, "host memory for requests is exhausted (" +
                                                          std::to_string(budget->max) + " bytes)");
    status.retry_pushback_ms = 100;
    status.details = ErrorDetails()
                         .error_info("HOST_MEMORY")
                         .retry_info(status.retry_pushback_ms * kMillisecond)
                         .serialise(status.code, status.message);
    return status;
}

void ServerSession::State::receive_unary_data(Stream* stream, Span bytes, std::size_t frame_left) {
    if (!take_in(stream, bytes.size)) return;
    FramingError error = stream->in.feed(&bytes, &frame_left, framing_limits());
    if (error == FramingError::kNone && !bytes.empty()) error = FramingError::kSecondMessage;
    if (!charge_inflated(stream) && error == FramingError::kNone)
        error = FramingError::kOutOfMemory;
    if (error != FramingError::kNone) {
        refuse_framing(stream, error);
        return;
    }
    keep_window_open(stream);
    if (stream->uncredited_bytes < config->stream_window_bytes / 4) return;
    if (is_paced(stream)) {
        credit_paced(stream);
    } else {
        credit_partial(stream, config->stream_window_bytes);
    }
}

// A slow link gets all of its window: it is far from keeping a processor busy. A first window comes
// as fast as the link is, however long its way: how fast the request comes is told by what is more.
bool ServerSession::State::is_paced(const Stream* stream) const {
    const std::uint64_t window = config->stream_window_bytes;
    if (now >= config->paced_until || window <= kPacedWindowBytes) return false;
    return stream->charged_bytes > window &&
           now - stream->arrival <
               kPacedNsPerByte * static_cast<Nanos>(stream->charged_bytes - window);
}

// Asks nghttp2, which keeps back what was credited while the stream was not paced.
void ServerSession::State::credit_paced(Stream* stream) {
    const std::uint64_t kept = config->stream_window_bytes - kPacedWindowBytes;
    const auto taken = static_cast<std::uint64_t>(
        nghttp2_session_get_stream_effective_recv_data_length(session, stream->id));
    if (taken < kept + kPacedWindowBytes / 2) return;
    nghttp2_submit_window_update(session, NGHTTP2_FLAG_NONE, stream->id,
                                 static_cast<std::int32_t>(taken - kept));
    stream->uncredited_bytes = std::min(stream->uncredited_bytes, kept);
    sendable = true;
}

void ServerSession::State::refuse_framing(Stream* stream, FramingError error) {
    const bool unframed = error == FramingError::kBadFlag || error == FramingError::kCompressed;
    if (error == FramingError::kOutOfMemory) {
        refuse_received(stream, host_memory_refusal());
    } else if (unframed && stream->kind == StreamKind::kUnary) {
        refuse_received(stream, unparsable());
    } else {
        refuse_received(stream, framing_status(error, stream->in, config->message_bytes_max));
    }
}

void ServerSession::State::receive_forward_data(Stream* stream, Span bytes) {
    // The connection window is paid at once: a forwarded stream nobody reads holds up itself only.
    nghttp2_session_consume_connection(session, bytes.size);
    if (!charge(bytes.size)) {
        if (!stream->headers_sent) {
            refuse(stream, host_memory_refusal(), nullptr);
        } else {
            reset(stream, NGHTTP2_ENHANCE_YOUR_CALM);
        }
        events.push(EventKind::kForwardReset, stream->id);
        return;
    }
    stream->charged_bytes += bytes.size;
    stream->uncredited_bytes += bytes.size;
    events.push(EventKind::kForwardData, stream->id)->message = BufferRef::copy_of(bytes);
}

void ServerSession::State::remote_ended(Stream* stream) {
    stream->remote_ended = true;
    if (stream->finished) return;
    if (stream->kind == StreamKind::kUnary) request_complete(stream);
    if (stream->kind == StreamKind::kMessages) messages_ended(stream);
    if (stream->kind == StreamKind::kForward) events.push(EventKind::kForwardEnd, stream->id);
}

void ServerSession::State::request_complete(Stream* stream) {
    if (!stream->in.complete()) {
        refuse(stream, unparsable(), nullptr);
        return;
    }
    const std::uint64_t window_bytes = close_window(stream, 0);
    stream->inflated_bytes = 0;
    stream->ready.push_back({stream->in.take(), std::exchange(stream->charged_bytes, 0), 0,
                             window_bytes, stream->arrival});
    events.push(stream, EventKind::kRequest);
}

int ServerSession::State::on_frame(nghttp2_session*, const nghttp2_frame* frame, void* pointer) {
    auto* state = static_cast<State*>(pointer);
    const bool end_stream = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    switch (frame->hd.type) {
        case NGHTTP2_HEADERS:
            if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
                if (state->block_.stream != nullptr)
                    state->request_headers_done(state->block_.stream, end_stream);
                return 0;
            }
            [[fallthrough]];
        case NGHTTP2_DATA:
            if (end_stream) {
                Stream* stream = state->find(frame->hd.stream_id);
                if (stream != nullptr) state->remote_ended(stream);
            }
            return 0;
        case NGHTTP2_RST_STREAM:
            state->count_reset();
            return 0;
        case NGHTTP2_PING:
            if ((frame->hd.flags & NGHTTP2_FLAG_ACK) != 0 && state->draining_) state->shut_down();
            return 0;
        default:
            return 0;
    }
}

void ServerSession::State::count_reset() {
    ++resets_received;
    const Nanos elapsed = std::clamp<Nanos>(now - reset_tokens_at_, 0, 1000 * kSecond);
    const std::int64_t earned = elapsed * kResetsPerSecond / kSecond;
    if (earned > 0) {
        reset_tokens_ = std::min(kResetBurst, reset_tokens_ + earned);
        reset_tokens_at_ = now;
    }
    if (--reset_tokens_ < 0) nghttp2_session_terminate_session(session, NGHTTP2_ENHANCE_YOUR_CALM);
}

int ServerSession::State::on_stream_close(nghttp2_session*, std::int32_t id, std::uint32_t,
                                          void* pointer) {
    auto* state = static_cast<State*>(pointer);
    Stream* stream = state->find(id);
    if (stream != nullptr) state->close_stream(stream);
    return 0;
}

void ServerSession::State::close_stream(Stream* stream) {
    if (stream->closed) return;
    stream->closed = true;
    --open_streams;
    if (block_.stream == stream) block_.stream = nullptr;
    drop_received(stream);
    drop_body(stream);
    uncharge(std::exchange(stream->metadata_bytes, 0));
    if (stream->announced && !stream->finished) {
        events.push(
            stream->kind == StreamKind::kForward ? EventKind::kForwardReset : EventKind::kCancelled,
            stream->id);
    }
    stream->finished = true;
    drop_if_unused(stream);
}

}  // namespace infersched::http2
