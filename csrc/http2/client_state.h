// The inside of ClientSession: client_receive.cc holds what nghttp2 calls while it is fed,
// client_session.cc what the owner calls, client_messages.cc both for message streams.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "http2/session_core.h"

namespace infersched::http2 {

class ClientSession::State : public SessionCore {
  public:
    explicit State(const ClientConfig& config);
    ~State() override { untaken(untaken_bytes_, 0); }

    StreamId call(std::string_view path, Nanos timeout_ns, std::string_view metadata,
                  Pieces&& message);
    StreamId open_stream(std::string_view path, Nanos timeout_ns, std::string_view metadata);
    StreamId forward_open(const Headers& headers, bool end_stream);
    void send(Stream* stream, Pieces&& message);
    void half_close(Stream* stream);
    // Resets the stream and forgets its messages that were not taken.
    void cancel(Stream* stream, std::uint32_t http2_error_code);
    bool take_event(Event* event);
    void lose();
    bool ready() const;
    bool draining() const;

    // Calls that nghttp2 has not opened yet are unknown to it: they are found here.
    Stream* find_call(StreamId id) const;

    ClientConfig config;
    std::size_t open_streams = 0;

  private:
    static const nghttp2_session_callbacks* callbacks();
    static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* state);
    static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                         std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                         std::uint8_t flags, void* state);
    static int on_data(nghttp2_session*, std::uint8_t flags, std::int32_t id,
                       const std::uint8_t* data, std::size_t size, void* state);
    static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* state);
    static int on_frame_sent(nghttp2_session*, const nghttp2_frame* frame, void* state);
    static int on_stream_close(nghttp2_session*, std::int32_t id, std::uint32_t code, void* state);

    Stream* open(StreamId id, StreamKind kind);
    StreamId submit_call(Stream* stream, std::string_view path, Nanos timeout_ns,
                         std::string_view metadata);
    StreamId submit(const std::vector<nghttp2_nv>& headers, Stream* stream, bool with_body);
    void receive_reply_header(Stream* stream, std::string_view name, std::string_view value);
    void headers_done(Stream* stream, bool end_stream);
    void receive_unary_data(Stream* stream, Span bytes, std::size_t frame_left);
    void receive_messages(Stream* stream, Span bytes, std::size_t frame_left);
    void remote_ended(Stream* stream);
    // Ends a unary call with what was received.
    void finish_call(Stream* stream);
    bool take_message(Stream* stream, Event* event);
    // Bytes of message streams that the owner does not have any more, or not yet.
    void untaken(std::uint64_t gone, std::uint64_t come);
    Event* fail_call(Stream* stream, Status status, bool nothing_ran);
    void fail_unsent();
    void fail_framing(Stream* stream, FramingError error);
    void close_stream(Stream* stream, std::uint32_t http2_error_code);

    Stream* block_stream_ = nullptr;                // whose header block is being received
    std::unordered_map<StreamId, Stream*> unsent_;  // submitted, HEADERS not out
    std::vector<nghttp2_nv> header_block_;          // kept for its memory
    std::uint64_t untaken_bytes_ = 0;
    bool settings_seen_ = false;
    bool goaway_seen_ = false;
    bool ids_exhausted_ = false;
};

// The status of a call whose stream was reset with an HTTP/2 error code.
Status status_of_reset(std::uint32_t http2_error_code);
// The status of an answer that is not gRPC's.
StatusCode status_of_http(unsigned http_status);

}  // namespace infersched::http2
