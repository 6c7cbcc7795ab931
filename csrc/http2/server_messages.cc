// Message streams of a server session: messages in, answers and trailers out.
#include <algorithm>
#include <utility>

#include "http2/headers.h"
#include "http2/server_state.h"

namespace infersched::http2 {

void ServerSession::State::receive_messages(Stream* stream, Span bytes, std::size_t frame_left) {
    if (!take_in(stream, bytes.size)) return;
    while (!bytes.empty()) {
        FramingError error = stream->in.feed(&bytes, &frame_left, framing_limits());
        if (!charge_inflated(stream) && error == FramingError::kNone)
            error = FramingError::kOutOfMemory;
        if (error != FramingError::kNone) {
            refuse_framing(stream, error);
            return;
        }
        if (stream->in.complete() && !message_complete(stream, bytes.size)) return;
    }
    keep_window_open(stream);
    credit_partial(stream, config->stream_window_bytes);
}

bool ServerSession::State::message_complete(Stream* stream, std::uint64_t later_bytes) {
    if (!charge(kMessageOverheadBytes)) {
        refuse_received(stream, host_memory_refusal());
        return false;
    }
    const std::uint64_t charged = stream->charged_bytes - later_bytes;
    const std::uint64_t flow_bytes = charged - std::exchange(stream->inflated_bytes, 0);
    const std::uint64_t bytes = charged + kMessageOverheadBytes;
    const std::uint64_t window_bytes = close_window(stream, later_bytes);
    stream->charged_bytes = later_bytes;
    stream->unclaimed_bytes += flow_bytes;
    stream->ready.push_back({stream->in.take(), bytes, flow_bytes, window_bytes, now});
    events.push(stream, EventKind::kMessage);
    return true;
}

void ServerSession::State::messages_ended(Stream* stream) {
    if (stream->in.started()) {
        refuse_received(stream,
                        Status::error(StatusCode::kInternal, "the request message is truncated"));
        return;
    }
    events.push(stream, EventKind::kHalfClosed);
}

void ServerSession::State::drop_received(Stream* stream) {
    while (stream->has_ready()) {
        const ReadyMessage ready = stream->take_ready();
        uncharge(ready.bytes);
        pay(ready.window_bytes);
    }
    stream->in.clear();
    uncharge(stream->charged_bytes);
    pay_unfinished(stream);
    stream->charged_bytes = stream->inflated_bytes = 0;
}

void ServerSession::State::refuse_received(Stream* stream, const Status& status) {
    const bool told = stream->kind == StreamKind::kMessages && stream->announced;
    if (stream->kind == StreamKind::kMessages) {
        finish(stream, status, nullptr);
    } else {
        refuse(stream, status, nullptr);
    }
    if (told) events.push(EventKind::kCancelled, stream->id);
}

void ServerSession::State::send(Stream* stream, Pieces&& message, const AnswerMetadata* metadata) {
    if (stream->finished || stream->kind != StreamKind::kMessages) return;
    if (!stream->headers_sent) {
        // Takes turns with others, however much it has to send.
        const nghttp2_extpri shared{NGHTTP2_EXTPRI_DEFAULT_URGENCY, 1};
        nghttp2_session_change_extpri_stream_priority(session, stream->id, &shared, 1);
        submit_headers(stream, metadata);
    }
    send_message(stream, std::move(message));
}

void ServerSession::State::finish(Stream* stream, const Status& status,
                                  const AnswerMetadata* metadata) {
    if (stream->finished || stream->kind != StreamKind::kMessages) return;
    if (!stream->headers_sent) {
        // An error alone is one block; initial metadata needs one of its own.
        if (!status.ok() && (metadata == nullptr || metadata->headers.empty())) {
            refuse(stream, status, metadata);
            return;
        }
        submit_headers(stream, metadata);
    }
    stream->finished = true;
    drop_received(stream);
    reset_tokens_ = std::min(kResetBurst, reset_tokens_ + kResetsPerAnswer);
    stream->trailers = status_trailers(status, metadata);
    if (metadata != nullptr)
        stream->trailers.insert(stream->trailers.end(), metadata->trailers.begin(),
                                metadata->trailers.end());
    end_body(stream, BodyEnd::kTrailers);
}

}  // namespace infersched::http2
