// What the owner of a client session calls: calls in, events out.
#include <algorithm>
#include <utility>

#include "http2/client_state.h"
#include "http2/headers.h"

namespace infersched::http2 {

namespace {

const nghttp2_nv kMethodPost = static_header(":method", "POST");
const nghttp2_nv kSchemes[] = {static_header(":scheme", "http"), static_header(":scheme", "https")};
const nghttp2_nv kTrailersOnly = static_header("te", "trailers");
const nghttp2_nv kAcceptEncoding = static_header("grpc-accept-encoding", kAcceptedEncodings);
const nghttp2_nv kContentType = static_header("content-type", "application/grpc");

// The n-th text of "name\0value\0..."; advances `rest`.
std::string_view next_text(std::string_view* rest) {
    const std::size_t end = std::min(rest->find('\0'), rest->size());
    const std::string_view text = rest->substr(0, end);
    rest->remove_prefix(std::min(end + 1, rest->size()));
    return text;
}

}  // namespace

Stream* ClientSession::State::open(StreamId id, StreamKind kind) {
    Stream* stream = streams.open(id);
    stream->kind = kind;
    stream->announced = true;
    ++open_streams;
    return stream;
}

Stream* ClientSession::State::find_call(StreamId id) const {
    if (lost) return nullptr;
    if (Stream* stream = find(id)) return stream;
    const auto found = unsent_.find(id);
    return found == unsent_.end() ? nullptr : found->second;
}

// Hands the request to nghttp2, which queues it while the peer's stream limit is reached.
StreamId ClientSession::State::submit(const std::vector<nghttp2_nv>& headers, Stream* stream,
                                      bool with_body) {
    const nghttp2_data_provider body = body_of(stream);
    stream->body_queued = with_body;
    const std::int32_t id = nghttp2_submit_request(session, nullptr, headers.data(), headers.size(),
                                                   with_body ? &body : nullptr, stream);
    if (id < 0) {
        ids_exhausted_ = true;
        drop_body(stream);
        --open_streams;
        streams.remove(stream);
        return 0;
    }
    stream->id = id;
    unsent_.emplace(id, stream);
    sendable = true;
    return id;
}

StreamId ClientSession::State::call(std::string_view path, Nanos timeout_ns,
                                    std::string_view metadata, Pieces&& message) {
    if (draining()) return 0;
    Stream* stream = open(0, StreamKind::kUnary);
    const bool compressed =
        config.compression != Compression::kNone && deflate_message(config.compression, &message);
    if (compressed) stream->out_encoding = config.compression;
    stream->out.set_message(std::move(message), compressed);
    stream->body_end = BodyEnd::kEndStream;
    add_unsent(stream->out.remaining());
    return submit_call(stream, path, timeout_ns, metadata);
}

StreamId ClientSession::State::submit_call(Stream* stream, std::string_view path, Nanos timeout_ns,
                                           std::string_view metadata) {
    header_block_ = {kMethodPost,
                     kSchemes[config.encrypted],
                     static_header(":path", path),
                     static_header(":authority", config.authority),
                     kTrailersOnly,
                     kContentType,
                     kAcceptEncoding,
                     static_header("user-agent", config.user_agent)};
    if (stream->out_encoding != Compression::kNone)
        header_block_.push_back(
            static_header("grpc-encoding", encoding_name(stream->out_encoding)));
    std::string timeout;
    if (timeout_ns != kNever) {
        timeout = format_timeout(timeout_ns);
        header_block_.push_back(copied_header("grpc-timeout", timeout));
        // Hardly ever the same twice: kept out of the peer's table.
        header_block_.back().flags |= NGHTTP2_NV_FLAG_NO_INDEX;
    }
    while (!metadata.empty()) {
        const std::string_view name = next_text(&metadata);
        header_block_.push_back(copied_header(name, next_text(&metadata)));
    }
    return submit(header_block_, stream, true);
}

StreamId ClientSession::State::forward_open(const Headers& headers, bool end_stream) {
    if (draining()) return 0;
    Stream* stream = open(0, StreamKind::kForward);
    stream->body_end = end_stream ? BodyEnd::kEndStream : BodyEnd::kOpen;
    header_block_ = {kMethodPost, kSchemes[config.encrypted], static_header(":path", "/"),
                     static_header(":authority", config.authority), kTrailersOnly};
    for (const auto& [name, value] : headers) {
        if (name == ":path") header_block_[2] = copied_header(name, value);
        if (name == ":authority") header_block_[3] = copied_header(name, value);
        if (name[0] != ':' && !is_hop_header(name))
            header_block_.push_back(copied_header(name, value));
    }
    return submit(header_block_, stream, !end_stream);
}

void ClientSession::State::cancel(Stream* stream, std::uint32_t http2_error_code) {
    while (stream->has_ready()) untaken(stream->take_ready().bytes, 0);
    if (!stream->closed) reset(stream, http2_error_code);
}

bool ClientSession::State::take_event(Event* event) {
    while (!events.empty()) {
        EventQueue::Record record = events.pop();
        if (record.event != nullptr) {
            *event = std::move(*record.event);
            return true;
        }
        Stream* stream = record.stream;
        reset_event(event, record.kind, stream->id);
        if (record.kind == EventKind::kMessage) {
            const bool ready = take_message(stream, event);
            drop_if_unused(stream);
            if (ready) return true;
            continue;
        }
        if (stream->closed) {
            drop_if_unused(stream);
            continue;
        }
        event->bytes = std::exchange(stream->sent_bytes, 0);
        stream->sent_recorded = false;
        return true;
    }
    return false;
}

void ClientSession::State::lose() {
    if (lost) return;
    for (Stream* stream = streams.first(); stream != nullptr;) {
        Stream* next = stream->next;
        if (!stream->closed && !stream->finished && stream->kind != StreamKind::kForward) {
            fail_call(stream, Status::error(StatusCode::kUnavailable, "the connection was lost"),
                      !stream->headers_sent)
                ->lost = true;
        }
        close_stream(stream, NGHTTP2_INTERNAL_ERROR);
        stream = next;
    }
    lost = true;
}

bool ClientSession::State::draining() const {
    return goaway_seen_ || ids_exhausted_ || lost || broken ||
           nghttp2_session_check_request_allowed(session) == 0;
}

bool ClientSession::State::ready() const {
    if (!settings_seen_ || draining()) return false;
    return open_streams <
           nghttp2_session_get_remote_settings(session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

ClientSession::ClientSession(const ClientConfig& config)
    : state_(std::make_unique<State>(config)) {}
ClientSession::~ClientSession() = default;

bool ClientSession::feed(Span bytes, Nanos now) { return state_->feed(bytes, now); }
Space ClientSession::receive_space() { return state_->receive_space(); }
bool ClientSession::next_event(Event* event) { return state_->take_event(event); }
bool ClientSession::has_events() const { return !state_->events.empty(); }
void ClientSession::connection_lost() { state_->lose(); }

StreamId ClientSession::call(std::string_view path, Nanos timeout_ns, std::string_view metadata,
                             Pieces&& message) {
    return state_->call(path, timeout_ns, metadata, std::move(message));
}

void ClientSession::cancel(StreamId id) {
    if (Stream* stream = state_->find_call(id)) state_->cancel(stream, NGHTTP2_CANCEL);
}

StreamId ClientSession::open_stream(std::string_view path, Nanos timeout_ns,
                                    std::string_view metadata) {
    return state_->open_stream(path, timeout_ns, metadata);
}

void ClientSession::send(StreamId id, Pieces&& message) {
    Stream* stream = state_->find_call(id);
    if (stream != nullptr && stream->kind == StreamKind::kMessages)
        state_->send(stream, std::move(message));
}

void ClientSession::half_close(StreamId id) {
    Stream* stream = state_->find_call(id);
    if (stream != nullptr && stream->kind == StreamKind::kMessages) state_->half_close(stream);
}

void ClientSession::consumed(StreamId id, std::uint64_t bytes) {
    Stream* stream = state_->find_call(id);
    if (stream != nullptr && stream->kind == StreamKind::kMessages) state_->claim(stream, bytes);
}

std::uint64_t ClientSession::unsent_bytes() const { return state_->unsent_bytes; }

std::uint64_t ClientSession::unsent_bytes(StreamId id) const {
    const Stream* stream = state_->find_call(id);
    return stream == nullptr ? 0 : stream->out.remaining();
}

bool ClientSession::ready() const { return state_->ready(); }
bool ClientSession::draining() const { return state_->draining(); }

StreamId ClientSession::forward_open(const Headers& headers, bool end_stream) {
    return state_->forward_open(headers, end_stream);
}

void ClientSession::forward_data(StreamId id, const BufferRef& owner, Span bytes, bool end_stream) {
    Stream* stream = state_->find_call(id);
    if (stream == nullptr || stream->finished || stream->body_end != BodyEnd::kOpen) return;
    state_->forward_data(stream, owner, bytes);
    if (end_stream) state_->end_body(stream, BodyEnd::kEndStream);
}

void ClientSession::forward_consumed(StreamId id, std::uint64_t bytes) {
    Stream* stream = state_->find_call(id);
    if (stream != nullptr && stream->kind == StreamKind::kForward)
        state_->forward_consumed(stream, bytes);
}

void ClientSession::reset(StreamId id, std::uint32_t http2_error_code) {
    if (Stream* stream = state_->find_call(id)) state_->cancel(stream, http2_error_code);
}

void ClientSession::pull(std::size_t bytes_max, std::vector<Slice>* out) {
    state_->pull(bytes_max, out);
}

bool ClientSession::wants_write() const { return state_->wants_write(); }
bool ClientSession::finished() const { return state_->over(); }
std::size_t ClientSession::open_streams() const { return state_->open_streams; }

}  // namespace infersched::http2
