// What the owner of a server session calls: events out, answers in.
#include <algorithm>

#include "http2/headers.h"
#include "http2/server_state.h"

namespace infersched::http2 {

namespace {

constexpr std::size_t kFairAnswerBytes = 64u << 10;
constexpr std::uint64_t kUnsentShareMin = 1u << 20;
constexpr std::uint8_t kDrainPing[8] = {'d', 'r', 'a', 'i', 'n', 0, 0, 1};

const nghttp2_nv kResponseHeaders[] = {static_header(":status", "200"),
                                       static_header("content-type", "application/grpc")};
const nghttp2_nv kAcceptEncoding = static_header("grpc-accept-encoding", kAcceptedEncodings);

std::string join_metadata(Headers headers) {
    std::stable_sort(headers.begin(), headers.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string joined;
    for (const auto& [name, value] : headers) {
        joined.append(name).push_back('\0');
        joined.append(value).push_back('\0');
    }
    return joined;
}

void append_headers(const Headers& headers, std::vector<nghttp2_nv>* block) {
    for (const auto& [name, value] : headers) block->push_back(copied_header(name, value));
}

}  // namespace

void ServerSession::State::update_throttle() {
    // The less room, the less for each: many slow readers leave an eighth of theirs to others.
    const std::uint64_t share = std::max(budget->room() / 8, kUnsentShareMin);
    const std::uint64_t bytes_max = std::min<std::uint64_t>(config->unsent_answer_bytes_max, share);
    if (unsent_bytes > bytes_max) throttled = true;
    if (unsent_bytes <= bytes_max / 2) throttled = false;
}

std::size_t ServerSession::State::queued_frames_max() const {
    return 4096 + 4 * static_cast<std::size_t>(config->streams_max);
}

// A client whose own windows hold its answers back must be read: the window updates come that way.
// Its new requests are refused instead.
bool ServerSession::State::wants_read() {
    if (has_unread()) return false;
    update_throttle();
    if (!sendable) return true;
    // Answers without a body, resets and acknowledgements count by number.
    return !throttled && nghttp2_session_get_outbound_queue_size(session) <= queued_frames_max();
}

void ServerSession::State::answer(Stream* stream, Pieces&& message,
                                  const AnswerMetadata* metadata) {
    if (stream->finished || stream->kind != StreamKind::kUnary) return;
    stream->finished = true;
    stream->headers_sent = true;
    const bool compressed = stream->out_encoding != Compression::kNone &&
                            deflate_message(stream->out_encoding, &message);
    stream->out.set_message(std::move(message), compressed);
    stream->body_end = BodyEnd::kTrailers;
    if (metadata != nullptr) stream->trailers = metadata->trailers;
    add_unsent(stream->out.remaining());
    sendable = true;
    reset_tokens_ = std::min(kResetBurst, reset_tokens_ + kResetsPerAnswer);
    if (stream->out.remaining() > kFairAnswerBytes) {
        const nghttp2_extpri shared{NGHTTP2_EXTPRI_DEFAULT_URGENCY, 1};
        nghttp2_session_change_extpri_stream_priority(session, stream->id, &shared, 1);
    }
    if (compressed || (metadata != nullptr && !metadata->headers.empty())) {
        submit_headers(stream, metadata);
        return;
    }
    const nghttp2_data_provider body = body_of(stream);
    nghttp2_submit_response(session, stream->id, kResponseHeaders, std::size(kResponseHeaders),
                            &body);
}

void ServerSession::State::submit_headers(Stream* stream, const AnswerMetadata* metadata) {
    stream->headers_sent = true;
    std::vector<nghttp2_nv> block(std::begin(kResponseHeaders), std::end(kResponseHeaders));
    block.push_back(kAcceptEncoding);
    if (stream->out_encoding != Compression::kNone)
        block.push_back(static_header("grpc-encoding", encoding_name(stream->out_encoding)));
    if (metadata != nullptr) append_headers(metadata->headers, &block);
    const nghttp2_data_provider body = body_of(stream);
    nghttp2_submit_response(session, stream->id, block.data(), block.size(), &body);
}

void ServerSession::State::refuse(Stream* stream, const Status& status,
                                  const AnswerMetadata* metadata) {
    if (stream->finished) return;
    stream->finished = true;
    // What was received so far is no longer needed; an announced request's bytes are the owner's.
    drop_received(stream);
    stream->headers.clear();
    stream->watched.clear();
    stream->kind = StreamKind::kRefused;
    sendable = true;
    reset_tokens_ = std::min(kResetBurst, reset_tokens_ + kResetsPerAnswer);
    const std::string http_status = std::to_string(stream->http_status);
    std::vector<nghttp2_nv> headers{copied_header(":status", http_status), kResponseHeaders[1]};
    const Headers trailers = status_trailers(status, metadata);
    append_headers(trailers, &headers);
    if (metadata != nullptr) {
        append_headers(metadata->headers, &headers);
        append_headers(metadata->trailers, &headers);
    }
    if (status.code == StatusCode::kUnimplemented) headers.push_back(kAcceptEncoding);
    nghttp2_submit_response(session, stream->id, headers.data(), headers.size(), nullptr);
}

void ServerSession::State::forward_headers(Stream* stream, const Headers& headers,
                                           bool end_stream) {
    if (stream->finished || stream->headers_sent || stream->kind != StreamKind::kForward) return;
    std::vector<nghttp2_nv> block{kResponseHeaders[0]};
    for (const auto& [name, value] : headers) {
        if (name == ":status") block[0] = copied_header(name, value);
        if (name[0] != ':' && !is_hop_header(name)) block.push_back(copied_header(name, value));
    }
    stream->headers_sent = true;
    stream->finished = end_stream;
    sendable = true;
    const nghttp2_data_provider body = body_of(stream);
    nghttp2_submit_response(session, stream->id, block.data(), block.size(),
                            end_stream ? nullptr : &body);
}

void ServerSession::State::forward_trailers(Stream* stream, const Headers& trailers) {
    if (stream->finished || stream->kind != StreamKind::kForward) return;
    if (!stream->headers_sent) {
        forward_headers(stream, trailers, true);
        return;
    }
    stream->finished = true;
    for (const auto& [name, value] : trailers)
        if (name[0] != ':' && !is_hop_header(name)) stream->trailers.emplace_back(name, value);
    end_body(stream, stream->trailers.empty() ? BodyEnd::kEndStream : BodyEnd::kTrailers);
}

bool ServerSession::State::take_event(Event* event) {
    while (!events.empty()) {
        EventQueue::Record record = events.pop();
        if (record.event != nullptr) {
            *event = std::move(*record.event);
            return true;
        }
        Stream* stream = record.stream;
        if (stream->closed) {
            drop_if_unused(stream);
            continue;
        }
        reset_event(event, record.kind, stream->id);
        if (take_record(stream, event)) return true;
    }
    return false;
}

// Fills an event of which only the stream was recorded. False: it is void by now.
bool ServerSession::State::take_record(Stream* stream, Event* event) {
    if (event->kind == EventKind::kForwardSent) {
        event->bytes = std::exchange(stream->sent_bytes, 0);
        stream->sent_recorded = false;
        return true;
    }
    if (stream->finished) return false;
    event->route = stream->route;
    event->arrival = stream->arrival;
    if (event->kind == EventKind::kMessage || event->kind == EventKind::kRequest) {
        ReadyMessage ready = stream->take_ready();
        event->message = std::move(ready.message);
        event->bytes = ready.bytes;
        event->window_bytes = ready.window_bytes;
        event->arrival = ready.arrival;
        if (event->kind == EventKind::kMessage) {
            claim(stream, ready.flow_bytes);
            return true;
        }
    }
    if (event->kind == EventKind::kHalfClosed) return true;
    stream->announced = true;
    event->deadline = stream->deadline;
    if (!stream->headers.empty()) event->metadata = join_metadata(std::move(stream->headers));
    if (!stream->watched.empty()) event->headers = std::move(stream->watched);
    return true;
}

void ServerSession::State::lose() {
    if (lost) return;
    lost = true;
    drop_unread();
    for (Stream* stream = streams.first(); stream != nullptr;) {
        Stream* next = stream->next;
        close_stream(stream);
        stream = next;
    }
}

// The client learns of the end one round trip before the last accepted stream is named, so that
// what it sends meanwhile is served.
void ServerSession::State::begin_drain() {
    if (lost || broken) return;
    sendable = true;
    if (draining_) {
        shut_down();
        return;
    }
    draining_ = true;
    nghttp2_submit_shutdown_notice(session);
    nghttp2_submit_ping(session, NGHTTP2_FLAG_NONE, kDrainPing);
}

void ServerSession::State::shut_down() {
    if (final_goaway_) return;
    final_goaway_ = true;
    nghttp2_submit_goaway(session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(session), NGHTTP2_NO_ERROR,
                          nullptr, 0);
}

bool ServerSession::State::finished() const {
    return over() || (final_goaway_ && open_streams == 0 && !wants_write());
}

int ServerSession::State::on_frame_sent(nghttp2_session* session, const nghttp2_frame* frame,
                                        void* pointer) {
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) return 0;
    if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
    // The answer is out before the request was: tell the client to stop sending (RFC 9113, 8.1).
    const Stream* stream = static_cast<State*>(pointer)->find(frame->hd.stream_id);
    if (stream != nullptr && !stream->remote_ended)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream->id, NGHTTP2_NO_ERROR);
    return 0;
}

// Whatever cannot be sent must still end its stream.
int ServerSession::State::on_frame_not_sent(nghttp2_session* session, const nghttp2_frame* frame,
                                            int, void*) {
    if (frame->hd.type == NGHTTP2_HEADERS)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                  NGHTTP2_INTERNAL_ERROR);
    return 0;
}

ServerSession::ServerSession(const ServerConfig* config, ByteBudget* budget)
    : state_(std::make_unique<State>(config, budget)) {}
ServerSession::~ServerSession() = default;

bool ServerSession::feed(Span bytes, Nanos now) { return state_->feed(bytes, now); }
Space ServerSession::receive_space() { return state_->receive_space(); }
bool ServerSession::next_event(Event* event) { return state_->take_event(event); }
bool ServerSession::has_events() const { return !state_->events.empty() || state_->has_unread(); }
void ServerSession::connection_lost() { state_->lose(); }

void ServerSession::answer(StreamId id, Pieces&& message, const AnswerMetadata* metadata) {
    if (Stream* stream = state_->find(id)) state_->answer(stream, std::move(message), metadata);
}

void ServerSession::refuse(StreamId id, const Status& status, const AnswerMetadata* metadata) {
    Stream* stream = state_->find(id);
    if (stream == nullptr) return;
    if (stream->kind == StreamKind::kMessages) {
        state_->finish(stream, status, metadata);
    } else if (!stream->headers_sent) {
        state_->refuse(stream, status, metadata);
    } else {
        state_->forward_trailers(stream, status_trailers(status));
    }
}

void ServerSession::send(StreamId id, Pieces&& message, const AnswerMetadata* metadata) {
    if (Stream* stream = state_->find(id)) state_->send(stream, std::move(message), metadata);
}

void ServerSession::finish(StreamId id, const Status& status, const AnswerMetadata* metadata) {
    if (Stream* stream = state_->find(id)) state_->finish(stream, status, metadata);
}

void ServerSession::hold(StreamId id, bool held) {
    Stream* stream = state_->find(id);
    if (stream == nullptr || stream->finished || stream->kind != StreamKind::kMessages) return;
    stream->held = held;
    if (!held) state_->claim(stream, 0);
}

std::uint64_t ServerSession::unsent_bytes(StreamId id) const {
    const Stream* stream = state_->find(id);
    return stream == nullptr ? 0 : stream->out.remaining();
}

void ServerSession::release(std::uint64_t bytes, std::uint64_t window_bytes) {
    state_->uncharge(bytes);
    state_->pay(window_bytes);
}

void ServerSession::set_aside(std::uint64_t window_bytes) { state_->pay(window_bytes); }
std::uint64_t ServerSession::unpaid_window_bytes() const { return state_->unpaid_bytes; }

void ServerSession::forward_headers(StreamId id, const Headers& headers, bool end_stream) {
    if (Stream* stream = state_->find(id)) state_->forward_headers(stream, headers, end_stream);
}

void ServerSession::forward_data(StreamId id, const BufferRef& owner, Span bytes) {
    Stream* stream = state_->find(id);
    if (stream != nullptr && stream->headers_sent && !stream->finished)
        state_->forward_data(stream, owner, bytes);
}

void ServerSession::forward_trailers(StreamId id, const Headers& trailers) {
    if (Stream* stream = state_->find(id)) state_->forward_trailers(stream, trailers);
}

void ServerSession::forward_consumed(StreamId id, std::uint64_t bytes) {
    Stream* stream = state_->find(id);
    if (stream == nullptr || stream->kind != StreamKind::kForward) return;
    const std::uint64_t credit = std::min(bytes, stream->charged_bytes);
    stream->charged_bytes -= credit;
    state_->uncharge(credit);
    state_->forward_consumed(stream, credit);
}

void ServerSession::reset(StreamId id, std::uint32_t http2_error_code) {
    if (Stream* stream = state_->find(id)) state_->reset(stream, http2_error_code);
}

void ServerSession::pull(std::size_t bytes_max, std::vector<Slice>* out) {
    state_->pull(bytes_max, out);
}

bool ServerSession::wants_write() const { return state_->wants_write(); }
bool ServerSession::wants_read() const { return state_->wants_read(); }
void ServerSession::begin_drain() { state_->begin_drain(); }
bool ServerSession::finished() const { return state_->finished(); }
std::size_t ServerSession::open_streams() const { return state_->open_streams; }
std::uint64_t ServerSession::unsent_answer_bytes() const { return state_->unsent_bytes; }
std::uint64_t ServerSession::resets_received() const { return state_->resets_received; }

}  // namespace infersched::http2
