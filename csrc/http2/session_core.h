// What server and client sessions share: the nghttp2 session, sending bodies, relaying data,
// pulling.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <vector>

#include "http2/session.h"
#include "http2/stream.h"

namespace infersched::http2 {

// Frames of more than this would let one answer hold up all others of its connection.
inline constexpr std::size_t kSentFrameBytesMax = 1u << 20;

// What one turn inflates at most before others have theirs, and the pieces input is read in where
// it may have to stop: 4 KiB inflate to 4 MiB at the worst.
inline constexpr std::uint64_t kInflatedBytesPerTurn = 4u << 20;
inline constexpr std::size_t kInputSliceBytes = 4u << 10;

class SessionCore {
  public:
    SessionCore() = default;
    virtual ~SessionCore();
    SessionCore(const SessionCore&) = delete;
    SessionCore& operator=(const SessionCore&) = delete;

    bool feed(Span bytes, Nanos now);
    Space receive_space();
    void pull(std::size_t bytes_max, std::vector<Slice>* out);
    bool wants_write() const;
    // Input that the last feed() or pull() left: too much had been inflated.
    bool has_unread() const { return !unread_.empty(); }
    void drop_unread() { unread_.clear(); }
    // Nothing more can happen on the connection.
    bool over() const;

    Stream* find(StreamId id) const;
    // Appends relayed bytes and wakes the stream's body.
    void forward_data(Stream* stream, const BufferRef& owner, Span bytes);
    // Appends one message of a message stream and wakes the stream's body.
    void send_message(Stream* stream, Pieces&& message);
    // Says what ends the stream's body and wakes it.
    void end_body(Stream* stream, BodyEnd end);
    // The owner has used `bytes` of a forwarded stream's DATA.
    void forward_consumed(Stream* stream, std::uint64_t bytes);
    // Opens the stream's window for a message that is being received, unless whole ones wait.
    void credit_partial(Stream* stream, std::uint32_t window_bytes);
    // The owner has claimed `bytes` of the whole messages received.
    void claim(Stream* stream, std::uint64_t bytes);
    // Resets without telling the owner anything more.
    void reset(Stream* stream, std::uint32_t http2_error_code);
    void record_sent(Stream* stream, std::uint64_t bytes);
    // Frees a closed stream unless a queued record still points to it.
    void drop_if_unused(Stream* stream);
    // Takes the stream's unsent body out of the count and forgets it.
    void drop_body(Stream* stream);

    nghttp2_data_provider body_of(Stream* stream);

    nghttp2_session* session = nullptr;
    EventQueue events;
    StreamList streams;
    Nanos now = 0;
    void add_unsent(std::uint64_t bytes);
    void remove_unsent(std::uint64_t bytes);
    std::uint64_t unsent_bytes = 0;
    ByteBudget* unsent_budget = nullptr;  // where a server session's are counted too
    // The last pull stopped at its byte bound or something was submitted since.
    bool sendable = false;
    bool lost = false;    // the transport is gone
    bool broken = false;  // nghttp2 refused to go on
    bool slices_input = false;
    std::uint64_t inflated_bytes = 0;  // in this turn

  protected:
    // All that came before has been received; what is submitted now still leaves with this pull.
    virtual void before_send() {}
    // Counts `size` received bytes; returns what was left of their DATA frame before them.
    std::size_t take_frame_bytes(std::size_t size);

    // Callbacks common to both sides, on top of which each adds its own.
    static nghttp2_session_callbacks* make_callbacks();
    // Options common to both sides.
    static nghttp2_option* make_options();

  private:
    static int on_begin_frame(nghttp2_session*, const nghttp2_frame_hd* header, void* core);
    static ssize_t read_body(nghttp2_session*, std::int32_t id, std::uint8_t* buffer,
                             std::size_t size, std::uint32_t* flags, nghttp2_data_source* source,
                             void* core);
    static ssize_t read_length(nghttp2_session*, std::uint8_t frame_type, std::int32_t id,
                               std::int32_t session_window, std::int32_t stream_window,
                               std::uint32_t frame_bytes_max, void* core);
    static int send_data(nghttp2_session*, nghttp2_frame* frame, const std::uint8_t* frame_header,
                         std::size_t size, nghttp2_data_source* source, void* core);
    void submit_trailers(Stream* stream);
    bool receive(Span bytes);
    bool receive_unread();

    Output output_;
    // The DATA frame being received, if any: what is to come of it, padding included.
    std::size_t frame_left_ = 0;
    StreamId frame_stream_ = 0;
    bool frame_padded_ = false;
    std::vector<std::uint8_t> unread_;
};

inline constexpr std::size_t kFrameHeaderBytes = 9;

}  // namespace infersched::http2
