#include "http2/session_core.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "http2/headers.h"

// Not in nghttp2 before 1.57, but in Debian's 1.52: asked at run time.
extern "C" __attribute__((weak)) void nghttp2_option_set_stream_reset_rate_limit(
    nghttp2_option* option, std::uint64_t burst, std::uint64_t rate);
// Not in nghttp2 before 1.50, which takes such values.
extern "C" __attribute__((weak)) void
nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(nghttp2_option* option, int val);

namespace infersched::http2 {

namespace {
constexpr std::size_t kSentHeaderBytesMax = 1u << 20;  // more than any block we accept to relay
const nghttp2_nv kTrailersOk[] = {static_header("grpc-status", "0")};
}  // namespace

SessionCore::~SessionCore() { nghttp2_session_del(session); }

nghttp2_session_callbacks* SessionCore::make_callbacks() {
    nghttp2_session_callbacks* callbacks = nullptr;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) std::abort();
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data);
    nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, read_length);
    return callbacks;
}

nghttp2_option* SessionCore::make_options() {
    nghttp2_option* options = nullptr;
    if (nghttp2_option_new(&options) != 0) std::abort();
    nghttp2_option_set_no_auto_window_update(options, 1);
    nghttp2_option_set_no_closed_streams(options, 1);
    nghttp2_option_set_max_send_header_block_length(options, kSentHeaderBytesMax);
    // gRPC clients and servers send metadata as they are, blanks at both ends too.
    if (nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation != nullptr)
        nghttp2_option_set_no_rfc9113_leading_and_trailing_ws_validation(options, 1);
    // gRPC clients reset at every expired deadline; resets are counted against work done instead.
    if (nghttp2_option_set_stream_reset_rate_limit != nullptr)
        nghttp2_option_set_stream_reset_rate_limit(options, UINT64_MAX, UINT64_MAX);
    return options;
}

bool SessionCore::feed(Span bytes, Nanos at) {
    if (lost || broken) return false;
    now = at;
    sendable = true;
    if (unread_.empty()) return receive(bytes);
    unread_.insert(unread_.end(), bytes.data, bytes.data + bytes.size);
    return receive_unread();
}

bool SessionCore::receive(Span bytes) {
    inflated_bytes = 0;
    while (!bytes.empty()) {
        if (inflated_bytes > kInflatedBytesPerTurn) {
            unread_.assign(bytes.data, bytes.data + bytes.size);
            return true;
        }
        const std::size_t size = slices_input ? std::min(bytes.size, kInputSliceBytes) : bytes.size;
        const ssize_t taken = nghttp2_session_mem_recv(session, bytes.data, size);
        if (taken <= 0) {
            broken = true;
            nghttp2_session_terminate_session(session, taken == NGHTTP2_ERR_FLOODED
                                                           ? NGHTTP2_ENHANCE_YOUR_CALM
                                                           : NGHTTP2_PROTOCOL_ERROR);
            return false;
        }
        const auto part = static_cast<std::size_t>(taken);
        bytes = {bytes.data + part, bytes.size - part};
    }
    return true;
}

bool SessionCore::receive_unread() {
    std::vector<std::uint8_t> input;
    input.swap(unread_);
    return receive({input.data(), input.size()});
}

int SessionCore::on_begin_frame(nghttp2_session*, const nghttp2_frame_hd* header, void* pointer) {
    auto* core = static_cast<SessionCore*>(pointer);
    core->frame_left_ = header->type == NGHTTP2_DATA ? header->length : 0;
    core->frame_stream_ = header->stream_id;
    core->frame_padded_ = (header->flags & NGHTTP2_FLAG_PADDED) != 0;
    return 0;
}

std::size_t SessionCore::take_frame_bytes(std::size_t size) {
    const std::size_t left = std::max(frame_left_, size);
    frame_left_ = left - size;
    return left;
}

// Nothing but the rest of the frame's data can come next: it may be read into its message.
Space SessionCore::receive_space() {
    if (frame_left_ < kDirectBytesMin || frame_padded_ || lost || broken) return {};
    // What is fed in slices must outlast an end of its stream; what was put off comes first.
    if (slices_input || has_unread()) return {};
    Stream* stream = find(frame_stream_);
    if (stream == nullptr || stream->finished || stream->kind == StreamKind::kForward) return {};
    return stream->in.space(frame_left_);
}

void SessionCore::pull(std::size_t bytes_max, std::vector<Slice>* out) {
    if (lost) return;
    if (!unread_.empty() && !broken) receive_unread();
    before_send();
    output_.begin(bytes_max, out);
    while (!output_.full()) {
        const std::uint8_t* bytes = nullptr;
        const ssize_t size = nghttp2_session_mem_send(session, &bytes);
        if (size < 0) broken = true;
        if (size <= 0) break;
        output_.write({bytes, static_cast<std::size_t>(size)});
    }
    sendable = output_.full();
    output_.finish();
}

bool SessionCore::wants_write() const { return !lost && nghttp2_session_want_write(session) != 0; }

bool SessionCore::over() const {
    if (lost) return true;
    if (broken) return !wants_write();
    return nghttp2_session_want_read(session) == 0 && !wants_write();
}

Stream* SessionCore::find(StreamId id) const {
    if (lost) return nullptr;
    return static_cast<Stream*>(nghttp2_session_get_stream_user_data(session, id));
}

nghttp2_data_provider SessionCore::body_of(Stream* stream) {
    stream->body_queued = true;
    nghttp2_data_provider provider{};
    provider.source.ptr = stream;
    provider.read_callback = read_body;
    return provider;
}

void SessionCore::forward_data(Stream* stream, const BufferRef& owner, Span bytes) {
    stream->out.append(owner, bytes);
    add_unsent(bytes.size);
    sendable = true;
    if (stream->body_queued) nghttp2_session_resume_data(session, stream->id);
}

void SessionCore::send_message(Stream* stream, Pieces&& message) {
    const bool compressed = stream->out_encoding != Compression::kNone &&
                            deflate_message(stream->out_encoding, &message);
    stream->out.append_message(message, compressed);
    add_unsent(kPrefixBytes + message.size());
    sendable = true;
    if (stream->body_queued) nghttp2_session_resume_data(session, stream->id);
}

void SessionCore::end_body(Stream* stream, BodyEnd end) {
    stream->body_end = end;
    sendable = true;
    if (stream->body_queued) nghttp2_session_resume_data(session, stream->id);
}

void SessionCore::forward_consumed(Stream* stream, std::uint64_t bytes) {
    const std::uint64_t credit = std::min(bytes, stream->uncredited_bytes);
    if (credit == 0) return;
    stream->uncredited_bytes -= credit;
    nghttp2_session_consume_stream(session, stream->id, credit);
    sendable = true;
}

void SessionCore::credit_partial(Stream* stream, std::uint32_t window_bytes) {
    if (stream->held) return;
    if (stream->unclaimed_bytes > 0 || stream->uncredited_bytes < window_bytes / 4) return;
    nghttp2_session_consume_stream(session, stream->id, stream->uncredited_bytes);
    stream->uncredited_bytes = 0;
}

// One message may have exceeded the window: what was credited while it came is not credited again.
void SessionCore::claim(Stream* stream, std::uint64_t bytes) {
    stream->unclaimed_bytes -= std::min(bytes, stream->unclaimed_bytes);
    if (stream->held) return;
    const std::uint64_t credit = stream->unclaimed_bytes == 0
                                     ? stream->uncredited_bytes
                                     : std::min(bytes, stream->uncredited_bytes);
    if (credit == 0) return;
    stream->uncredited_bytes -= credit;
    nghttp2_session_consume_stream(session, stream->id, credit);
    sendable = true;
}

void SessionCore::reset(Stream* stream, std::uint32_t http2_error_code) {
    stream->finished = true;
    drop_body(stream);
    sendable = true;
    nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, stream->id, http2_error_code);
}

void SessionCore::record_sent(Stream* stream, std::uint64_t bytes) {
    stream->sent_bytes += bytes;
    if (stream->sent_recorded) return;
    stream->sent_recorded = true;
    events.push(stream, EventKind::kForwardSent);
}

void SessionCore::drop_if_unused(Stream* stream) {
    if (stream->closed && stream->records == 0) streams.remove(stream);
}

void SessionCore::add_unsent(std::uint64_t bytes) {
    unsent_bytes += bytes;
    if (unsent_budget != nullptr) unsent_budget->unsent += bytes;
}

void SessionCore::remove_unsent(std::uint64_t bytes) {
    unsent_bytes -= bytes;
    if (unsent_budget != nullptr) unsent_budget->unsent -= bytes;
}

void SessionCore::drop_body(Stream* stream) {
    remove_unsent(stream->out.remaining());
    stream->out.clear();
}

ssize_t SessionCore::read_length(nghttp2_session* session, std::uint8_t, std::int32_t id,
                                 std::int32_t session_window, std::int32_t stream_window,
                                 std::uint32_t frame_bytes_max, void*) {
    // The body's own length as well: nghttp2 makes its frame buffer as large as this.
    const auto* stream =
        static_cast<const Stream*>(nghttp2_session_get_stream_user_data(session, id));
    const std::size_t remaining = stream == nullptr ? 1 : stream->out.remaining();
    const std::int64_t limit = std::min<std::int64_t>(
        {session_window, stream_window, frame_bytes_max, static_cast<std::int64_t>(remaining),
         static_cast<std::int64_t>(kSentFrameBytesMax)});
    return static_cast<ssize_t>(std::max<std::int64_t>(limit, 1));
}

ssize_t SessionCore::read_body(nghttp2_session*, std::int32_t, std::uint8_t*, std::size_t size,
                               std::uint32_t* flags, nghttp2_data_source* source, void* core) {
    auto* stream = static_cast<Stream*>(source->ptr);
    const std::size_t remaining = stream->out.remaining();
    if (remaining == 0 && stream->body_end == BodyEnd::kOpen) return NGHTTP2_ERR_DEFERRED;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    const std::size_t part = std::min(size, remaining);
    if (part == remaining && stream->body_end != BodyEnd::kOpen) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (stream->body_end == BodyEnd::kTrailers) {
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            static_cast<SessionCore*>(core)->submit_trailers(stream);
        }
    }
    return static_cast<ssize_t>(part);
}

void SessionCore::submit_trailers(Stream* stream) {
    if (stream->trailers.empty()) {
        nghttp2_submit_trailer(session, stream->id, kTrailersOk, std::size(kTrailersOk));
        return;
    }
    std::vector<nghttp2_nv> trailers;
    bool has_status = stream->kind == StreamKind::kForward;
    for (const auto& [name, value] : stream->trailers) {
        has_status = has_status || name == "grpc-status";
        trailers.push_back(copied_header(name, value));
    }
    if (!has_status) trailers.insert(trailers.begin(), kTrailersOk[0]);
    nghttp2_submit_trailer(session, stream->id, trailers.data(), trailers.size());
}

int SessionCore::send_data(nghttp2_session*, nghttp2_frame*, const std::uint8_t* frame_header,
                           std::size_t size, nghttp2_data_source* source, void* pointer) {
    auto* core = static_cast<SessionCore*>(pointer);
    auto* stream = static_cast<Stream*>(source->ptr);
    // The frame stays with nghttp2 and comes again at the next pull.
    if (core->output_.full()) return NGHTTP2_ERR_WOULDBLOCK;
    // Reset by the owner while the frame waited.
    if (size > stream->out.remaining()) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    core->output_.write({frame_header, kFrameHeaderBytes});
    stream->out.send(size, &core->output_);
    core->remove_unsent(size);
    if (stream->kind == StreamKind::kForward && size > 0) core->record_sent(stream, size);
    return 0;
}

}  // namespace infersched::http2
