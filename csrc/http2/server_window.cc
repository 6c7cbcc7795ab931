// What requests hold of the memory budget and of their connection's window.
//
// A message closes the window by its bytes, from their arrival until its owner lets it go: that is
// what bounds a connection that sends more than is answered. But nothing may wait for a window that
// only it could open. Therefore what came of a message is paid back
//
//     at once     where the message is longer than half the window;
//     beyond half where messages that are not complete close half of the window together.
//
// So messages that are not complete leave half of the window to others, and a message waits only
// for held ones that leave it too little: a short one what it has to come, a long one next to
// nothing. What is paid back before its message is let go is bounded by the budget alone.
#include <algorithm>
#include <utility>

#include "http2/server_state.h"

namespace infersched::http2 {

namespace {

// Less than this is not worth a frame and the round trip of its client.
constexpr std::int64_t kWindowUpdateMin = 4 << 10;

}  // namespace

bool ServerSession::State::charge(std::uint64_t bytes) {
    if (bytes > budget->room()) return false;
    budget->used += bytes;
    charged_bytes += bytes;
    return true;
}

void ServerSession::State::uncharge(std::uint64_t bytes) {
    bytes = std::min(bytes, charged_bytes);
    budget->used -= bytes;
    charged_bytes -= bytes;
}

bool ServerSession::State::charge_inflated(Stream* stream) {
    const std::uint64_t bytes = stream->in.inflated_bytes();
    if (bytes > stream->inflated_bytes) {
        inflated_bytes += bytes - stream->inflated_bytes;
        if (!charge(bytes - stream->inflated_bytes)) return false;
    } else {
        uncharge(stream->inflated_bytes - bytes);
    }
    stream->charged_bytes += bytes - stream->inflated_bytes;
    stream->inflated_bytes = bytes;
    return true;
}

bool ServerSession::State::take_in(Stream* stream, std::uint64_t bytes) {
    if (!charge(bytes)) {
        nghttp2_session_consume_connection(session, bytes);
        refuse_received(stream, host_memory_refusal());
        return false;
    }
    stream->charged_bytes += bytes;
    stream->uncredited_bytes += bytes;
    stream->unpaid_bytes += bytes;
    unfinished_bytes += bytes;
    unpaid_bytes += bytes;
    return true;
}

void ServerSession::State::pay(std::uint64_t bytes) {
    bytes = std::min(bytes, unpaid_bytes);
    unpaid_bytes -= bytes;
    if (bytes == 0 || lost) return;
    nghttp2_session_consume_connection(session, bytes);
    sendable = true;
}

void ServerSession::State::pay_unfinished(Stream* stream) {
    unfinished_bytes -= stream->unpaid_bytes;
    pay(std::exchange(stream->unpaid_bytes, 0));
}

std::uint64_t ServerSession::State::half_window() const {
    return static_cast<std::uint64_t>(nghttp2_session_get_effective_local_window_size(session)) / 2;
}

void ServerSession::State::keep_window_open(Stream* stream) {
    const std::uint64_t half = half_window();
    if (stream->in.length() > half || unfinished_bytes > half) pay_unfinished(stream);
}

std::uint64_t ServerSession::State::close_window(Stream* stream, std::uint64_t later_bytes) {
    const std::uint64_t bytes = stream->unpaid_bytes - later_bytes;
    stream->unpaid_bytes = later_bytes;
    unfinished_bytes -= bytes;
    if (stream->in.length() <= half_window()) return bytes;
    pay(bytes);
    return 0;
}

// nghttp2 keeps back what was paid until it is half a window: beside held messages that may be more
// than all that is open.
void ServerSession::State::before_send() {
    const std::int64_t open = nghttp2_session_get_local_window_size(session);
    const std::int64_t closed = nghttp2_session_get_effective_recv_data_length(session);
    const std::int64_t kept = closed - static_cast<std::int64_t>(unpaid_bytes);
    if (kept < std::max(open, kWindowUpdateMin)) return;
    nghttp2_submit_window_update(session, NGHTTP2_FLAG_NONE, 0, static_cast<std::int32_t>(kept));
}

}  // namespace infersched::http2
