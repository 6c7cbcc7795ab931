// The inside of ServerSession: server_receive.cc holds what nghttp2 calls while it is fed,
// server_session.cc what the owner calls, server_messages.cc both for message streams,
// server_window.cc what both count.
#pragma once

#include <string>
#include <string_view>

#include "http2/session_core.h"

namespace infersched::http2 {

// Resets a client may send. Deadline storms of good clients are bursts of thousands; each costs us
// about as much as a request, so what is refused is a connection that does little else: more than
// `kResetBurst` at once and then more than `kResetsPerSecond` plus `kResetsPerAnswer` for every
// answer sent.
inline constexpr std::int64_t kResetBurst = 20'000;
inline constexpr std::int64_t kResetsPerSecond = 10'000;
inline constexpr std::int64_t kResetsPerAnswer = 10;

// Charged for every message of a message stream on top of its bytes: what keeping it costs, so that
// empty ones are not free.
inline constexpr std::uint64_t kMessageOverheadBytes = 256;

class ServerSession::State : public SessionCore {
  public:
    State(const ServerConfig* config, ByteBudget* budget);
    ~State() override;

    // -- answers (server_session.cc) ----
    void answer(Stream* stream, Pieces&& message, const AnswerMetadata* metadata);
    void refuse(Stream* stream, const Status& status, const AnswerMetadata* metadata);
    void send(Stream* stream, Pieces&& message, const AnswerMetadata* metadata);
    void finish(Stream* stream, const Status& status, const AnswerMetadata* metadata);
    void forward_headers(Stream* stream, const Headers& headers, bool end_stream);
    void forward_trailers(Stream* stream, const Headers& trailers);
    bool take_event(Event* event);
    void lose();
    void begin_drain();
    bool finished() const;
    bool wants_read();

    // -- bytes held for requests (server_window.cc) ----
    bool charge(std::uint64_t bytes);
    void uncharge(std::uint64_t bytes);
    // Charges and counts what compression made of the bytes received.
    bool charge_inflated(Stream* stream);
    // Charges and counts what came for a terminated stream. False: there was no memory for it.
    bool take_in(Stream* stream, std::uint64_t bytes);
    // Pays back what closes the connection window.
    void pay(std::uint64_t bytes);
    // What has come of the stream's message that is not complete, whatever it is,
    void pay_unfinished(Stream* stream);
    // or where it has to be, for more to come.
    void keep_window_open(Stream* stream);
    // The stream's message is complete: what it closes of the window from now on. What came of the
    // next one, `later_bytes`, is left.
    std::uint64_t close_window(Stream* stream, std::uint64_t later_bytes);

    const ServerConfig* config;
    ByteBudget* budget;
    std::uint64_t charged_bytes = 0;     // to the budget by this connection
    std::uint64_t unpaid_bytes = 0;      // received and not paid back to the connection window,
    std::uint64_t unfinished_bytes = 0;  // of them: of messages that are not complete
    std::size_t open_streams = 0;
    std::uint64_t resets_received = 0;
    bool throttled = false;  // too many unsent answer bytes

  protected:
    void before_send() override;

  private:
    // -- callbacks of nghttp2 (server_receive.cc) ----
    static const nghttp2_session_callbacks* callbacks();
    static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* state);
    static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name,
                         std::size_t name_size, const std::uint8_t* value, std::size_t value_size,
                         std::uint8_t flags, void* state);
    static int on_data(nghttp2_session*, std::uint8_t flags, std::int32_t id,
                       const std::uint8_t* data, std::size_t size, void* state);
    static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* state);
    static int on_frame_sent(nghttp2_session*, const nghttp2_frame* frame, void* state);
    static int on_frame_not_sent(nghttp2_session*, const nghttp2_frame* frame, int error,
                                 void* state);
    static int on_stream_close(nghttp2_session*, std::int32_t id, std::uint32_t code, void* state);

    void receive_pseudo_header(Stream* stream, std::string_view name, std::string_view value);
    void receive_header(Stream* stream, std::string_view name, std::string_view value);
    void select_route(Stream* stream, std::string_view path);
    void charge_metadata(Stream* stream);
    void request_headers_done(Stream* stream, bool end_stream);
    void receive_unary_data(Stream* stream, Span bytes, std::size_t frame_left);
    bool is_paced(const Stream* stream) const;
    void credit_paced(Stream* stream);
    void receive_messages(Stream* stream, Span bytes, std::size_t frame_left);
    void receive_forward_data(Stream* stream, Span bytes);
    void remote_ended(Stream* stream);
    void request_complete(Stream* stream);
    // `later_bytes` of what is charged to the stream are not this message's.
    bool message_complete(Stream* stream, std::uint64_t later_bytes);
    void messages_ended(Stream* stream);
    bool take_record(Stream* stream, Event* event);
    std::uint64_t half_window() const;
    FramingLimits framing_limits() const { return {config->message_bytes_max, budget->room()}; }
    // Headers of an answer with a body.
    void submit_headers(Stream* stream, const AnswerMetadata* metadata);
    // Frees what was received and is not the owner's.
    void drop_received(Stream* stream);
    // Ends a terminated stream for what was received; the owner of a message stream is told.
    void refuse_received(Stream* stream, const Status& status);
    void count_reset();
    void close_stream(Stream* stream);
    void refuse_framing(Stream* stream, FramingError error);
    Status host_memory_refusal() const;
    void shut_down();
    void update_throttle();
    std::size_t queued_frames_max() const;

    // The header block being received; blocks do not interleave.
    struct Block {
        Stream* stream = nullptr;
        bool post = false;
        bool grpc = false;
        std::string authority;
        void clear() {
            stream = nullptr;
            post = grpc = false;
            authority.clear();
        }
    } block_;
    bool pause_input_ = false;
    std::uint16_t last_route_ = 0;
    std::int64_t reset_tokens_ = kResetBurst;
    Nanos reset_tokens_at_ = 0;
    bool draining_ = false;
    bool final_goaway_ = false;
};

}  // namespace infersched::http2
