// Message streams of a client session.
#include <utility>

#include "http2/client_state.h"

namespace infersched::http2 {

StreamId ClientSession::State::open_stream(std::string_view path, Nanos timeout_ns,
                                           std::string_view metadata) {
    if (draining()) return 0;
    Stream* stream = open(0, StreamKind::kMessages);
    stream->body_end = BodyEnd::kOpen;
    stream->out_encoding = config.compression;
    return submit_call(stream, path, timeout_ns, metadata);
}

void ClientSession::State::send(Stream* stream, Pieces&& message) {
    if (stream->finished || stream->body_end != BodyEnd::kOpen) return;
    send_message(stream, std::move(message));
}

void ClientSession::State::half_close(Stream* stream) {
    if (stream->finished || stream->body_end != BodyEnd::kOpen) return;
    end_body(stream, BodyEnd::kEndStream);
}

void ClientSession::State::untaken(std::uint64_t gone, std::uint64_t come) {
    untaken_bytes_ += come - gone;
    if (config.budget != nullptr) config.budget->unsent += come - gone;
}

void ClientSession::State::receive_messages(Stream* stream, Span bytes, std::size_t frame_left) {
    stream->uncredited_bytes += bytes.size;
    while (!bytes.empty()) {
        const std::size_t before = bytes.size;
        const FramingError error = stream->in.feed(&bytes, &frame_left, {config.message_bytes_max});
        stream->charged_bytes += before - bytes.size;
        untaken(0, before - bytes.size);
        if (error != FramingError::kNone) {
            fail_framing(stream, error);
            return;
        }
        if (!stream->in.complete()) continue;
        const std::uint64_t message_bytes = std::exchange(stream->charged_bytes, 0);
        stream->unclaimed_bytes += message_bytes;
        stream->ready.push_back({stream->in.take(), message_bytes, message_bytes, 0, now});
        events.push(stream, EventKind::kMessage);
    }
    credit_partial(stream, config.stream_window_bytes);
}

// False: cancelled meanwhile.
bool ClientSession::State::take_message(Stream* stream, Event* event) {
    if (!stream->has_ready()) return false;
    ReadyMessage ready = stream->take_ready();
    untaken(ready.bytes, 0);
    event->message = std::move(ready.message);
    event->bytes = ready.bytes;
    event->arrival = ready.arrival;
    event->answer.headers = std::move(stream->answer.headers);
    return true;
}

}  // namespace infersched::http2
