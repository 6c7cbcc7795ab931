// gRPC over HTTP/2, sans-IO: bytes in, events out; answers in, bytes out.
//
// A ServerSession faces one client connection, a ClientSession one connection to a Triton or to the
// control plane. Callbacks of nghttp2 only record. The owner, once per loop turn: feeds what was
// read, takes events, submits answers, and pulls what is to be written. No session is fed, pulled
// or deleted inside a callback, and nothing here knows models, sockets or clocks.
//
// Streams are *unary* (terminated here: one message in, one answer out), *message streams*
// (terminated here: any number of messages each way) or *forwarded* (headers, data and trailers
// relayed as they are, with flow control and cancellation). Messages of the first two kinds are
// compressed and inflated here; the owner sees them plain.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "base/time.h"

namespace infersched::http2 {

using StreamId = std::int32_t;
using Headers = std::vector<std::pair<std::string, std::string>>;

// Bytes held over all connections: of requests, charged as DATA arrives, and of answers that their
// clients have not read, with what came for a client's stream and was not taken. Answers are never
// refused, requests are while both together have no room.
struct ByteBudget {
    std::uint64_t used = 0;
    std::uint64_t unsent = 0;
    std::uint64_t max = 4ull << 30;

    std::uint64_t room() const { return max - std::min(max, used + unsent); }
};

enum class RouteKind : std::uint8_t { kUnary, kMessageStream, kUnimplemented, kForward };

// Of messages we send, where it makes them shorter and they are not longer than 4 MiB: deflating is
// work of the loop. Received ones may use any of these.
enum class Compression : std::uint8_t { kNone, kGzip, kDeflate };

// Custom metadata around an answer: headers before its first message, trailers after its last.
struct AnswerMetadata {
    Headers headers;
    Headers trailers;
    bool empty() const { return headers.empty() && trailers.empty(); }
};

struct Route {
    std::string path;  // "/package.Service/Method"
    RouteKind kind;
    std::string text;  // kUnimplemented: the grpc-message
};

// Acts on the client's own stream; what is forwarded by a beginning of its name has it not.
inline constexpr std::string_view kStreamErrorsHeader = "triton_grpc_error";

// Shared by all server sessions, outlives them; may be changed between feeds.
struct ServerConfig {
    std::vector<Route> routes;  // any other path is forwarded
    std::size_t message_bytes_max = 0x7fffffff;
    std::uint32_t streams_max = 1000;
    std::uint32_t connection_window_bytes = 8u << 20;
    std::uint32_t stream_window_bytes = 1u << 20;
    std::uint32_t frame_bytes_max = 1u << 20;
    std::uint32_t header_list_bytes_max = 64u << 10;
    // A reader slower than this stops being read; than an eighth of the budget's room as well.
    std::uint32_t unsent_answer_bytes_max = 64u << 20;
    // Lower-case names, or beginnings of names with a '*' behind them.
    std::vector<std::string> forward_metadata;
    // Lower-case names of headers that are told in Event::headers of kRequest and kStreamOpened.
    std::vector<std::string> watched_headers;
    // Of answers to clients that accept it (grpc-accept-encoding).
    Compression response_compression = Compression::kNone;
    // Not null: large messages are received into shared blocks where there is room. Told the first
    // bytes of a message, it says which of its bytes is to be aligned.
    std::size_t (*shared_alignment)(Span head) = nullptr;
    // Until then a large request that comes fast gets its window in small pieces: its client would
    // keep a processor from others that wait for it.
    Nanos paced_until = 0;
    // Headers that must never come from outside (stripped from forwarded calls).
    std::vector<std::string> internal_headers;
};

enum class EventKind : std::uint8_t {
    // server: a whole unary request; `message`, `deadline`, `metadata`, `route`
    kRequest,
    // server: the client reset the stream or the connection ended, or a message stream was refused
    // here for what came on it (once per open stream that was announced by an event and not yet
    // finished by us)
    kCancelled,
    // server: a message stream opened; `deadline`, `metadata`, `route`, `headers` (watched ones)
    kStreamOpened,
    // one whole message of a message stream; server: `bytes` (more than those received: keeping a
    // message costs memory as well) and `window_bytes`, due to release(), `arrival`; client:
    // `bytes`, due to consumed()
    kMessage,
    // server: the client sends no further messages on this message stream
    kHalfClosed,
    // client: a unary call ended; `status`, `message` (may be empty on error), `nothing_ran`,
    // `answer`; or a message stream ended: the same without a message, after all its kMessage
    kReply,
    // a forwarded stream opened (server) / answered with headers (client); `headers`
    kForwardHeaders,
    // `message` = a piece of its DATA; pay back with forward_consumed()
    kForwardData,
    // client: `headers` = trailers (or trailers-only response); the stream is over
    kForwardTrailers,
    // server: the client half-closed
    kForwardEnd,
    // the other side reset the stream (client: also connection lost)
    kForwardReset,
    // `bytes` given to forward_data() have left
    kForwardSent,
};

struct Event {
    EventKind kind;
    StreamId stream = 0;
    std::uint16_t route = 0;  // index in ServerConfig::routes
    // kReply: surely not executed (REFUSED_STREAM, GOAWAY below the id, never sent)
    bool nothing_ran = false;
    // kReply: the status is the peer's own word, not what we made of a lost call
    bool answered = false;
    // kReply: its connection is gone
    bool lost = false;
    // kReply: the peer reset its stream
    bool reset = false;
    bool end_stream = false;  // kForwardHeaders/Data: nothing follows from that side
    Nanos arrival = 0;        // kRequest: when its HEADERS came
    Nanos deadline = kNever;  // kRequest: from grpc-timeout
    std::uint64_t bytes = 0;  // kRequest: charged to the budget until release(); kForwardSent
    // kRequest: what it closes of the connection window until release() or set_aside()
    std::uint64_t window_bytes = 0;
    BufferRef message;  // one gRPC message without its 5-byte prefix; kForwardData: raw DATA
    // kRequest: canonical "name\0value\0..." of forward_metadata found, sorted
    std::string metadata;
    Headers headers;
    Status status;  // kReply
    // kReply: custom metadata of the reply, without what is the transport's; of a message stream
    // its `headers` come with the first kMessage
    AnswerMetadata answer;
};

class ServerSession {
  public:
    ServerSession(const ServerConfig* config, ByteBudget* budget);
    ~ServerSession();

    // -- bytes in --

    // False: the connection is beyond repair; pull once more (GOAWAY) and close it.
    bool feed(Span bytes, Nanos now);
    // Where the bytes that come next may be written before they are fed: inside the message they
    // belong to. Empty: anywhere. Valid until anything else is called here.
    Space receive_space();
    // Next recorded event; false when there is none. Limits per turn are the caller's.
    bool next_event(Event* event);
    // Also true while input is left that feed() put off (what inflates to much takes many turns):
    // pull() goes on with it.
    bool has_events() const;
    // The transport is gone: every stream announced becomes kCancelled / kForwardReset.
    void connection_lost();

    // -- unary streams --

    // Answers OK with one message. A stream that ended meanwhile is ignored.
    void answer(StreamId stream, Pieces&& message, const AnswerMetadata* metadata = nullptr);
    // Answers with an error and no message. Safe before the request is complete: further DATA is
    // dropped and the stream reset with NO_ERROR afterwards. A forwarded stream may be refused too;
    // when its answer's headers are out, the error goes into its trailers.
    void refuse(StreamId stream, const Status& status, const AnswerMetadata* metadata = nullptr);
    // A taken kRequest or kMessage is no longer held: pays back budget and connection window. Due
    // once for every one of them, whether it was answered, cancelled or lost.
    void release(std::uint64_t bytes, std::uint64_t window_bytes);
    // It may be held for long: pays back the connection window at once, so that other requests get
    // through. What remains for release() is the budget.
    void set_aside(std::uint64_t window_bytes);
    // What of the connection window is closed by messages: held, not taken yet or not complete.
    std::uint64_t unpaid_window_bytes() const;

    // -- message streams --

    // One message of the answer; the response headers, with those of `metadata`, go before the
    // first. A stream that ended meanwhile is ignored. Ends with finish() or refuse().
    void send(StreamId stream, Pieces&& message, const AnswerMetadata* metadata = nullptr);
    // The trailers, after all that was sent; `status` may be OK. What still arrives is dropped.
    void finish(StreamId stream, const Status& status, const AnswerMetadata* metadata = nullptr);
    // While a stream is held, it gets no new window: its client can send what fits the window it
    // has, however many of its messages are taken.
    void hold(StreamId stream, bool held);
    // Sent and not yet handed out by pull(): of one stream, for back-pressure to who produces.
    std::uint64_t unsent_bytes(StreamId stream) const;

    // -- forwarded streams --
    void forward_headers(StreamId stream, const Headers& headers, bool end_stream);
    void forward_data(StreamId stream, const BufferRef& owner, Span bytes);
    void forward_trailers(StreamId stream, const Headers& trailers);
    void forward_consumed(StreamId stream, std::uint64_t bytes);
    void reset(StreamId stream, std::uint32_t http2_error_code);

    // -- bytes out --

    // Appends what can be written now, about `bytes_max` at most. Pieces up to 16 KiB are gathered,
    // larger ones are referred to. Nothing appended = nothing to write (or the peer's window is
    // closed).
    void pull(std::size_t bytes_max, std::vector<Slice>* out);
    bool wants_write() const;
    // Whether more should be read from this client now (false: too many unsent answer bytes, or
    // input was put off).
    bool wants_read() const;
    // GOAWAY: existing streams finish, new ones are not accepted once the client has acknowledged
    // the notice. A second call does not wait for that.
    void begin_drain();
    // Everything is answered and written after begin_drain() or an error: close the transport.
    bool finished() const;
    std::size_t open_streams() const;
    // Of answers and relayed data that pull() has not handed out yet.
    std::uint64_t unsent_answer_bytes() const;
    std::uint64_t resets_received() const;

  private:
    class State;
    std::unique_ptr<State> state_;
};

struct ClientConfig {
    std::string authority;  // always sent: grpcio resets streams without one
    std::string user_agent = "infersched";
    std::size_t message_bytes_max = 0x7fffffff;
    std::uint32_t connection_window_bytes = 64u << 20;
    std::uint32_t stream_window_bytes = 16u << 20;
    std::uint32_t frame_bytes_max = 1u << 20;
    Compression compression = Compression::kNone;  // of the messages sent
    bool encrypted = false;                        // by the owner's transport: the scheme is https
    // Where what message streams received and the owner has not taken is `unsent`; outlives the
    // session.
    ByteBudget* budget = nullptr;
};

class ClientSession {
  public:
    explicit ClientSession(const ClientConfig& config);
    ~ClientSession();

    bool feed(Span bytes, Nanos now);
    Space receive_space();
    bool next_event(Event* event);
    bool has_events() const;
    // Every open call gets its kReply (UNAVAILABLE) / kForwardReset.
    void connection_lost();

    // -- unary calls --

    // `path` outlives the session ("/inference.GRPCInferenceService/ModelInfer"); `timeout_ns`
    // kNever = no grpc-timeout; `metadata` in the canonical form of Event::metadata. Returns 0 when
    // no stream can be opened.
    StreamId call(std::string_view path, Nanos timeout_ns, std::string_view metadata,
                  Pieces&& message);
    // RST_STREAM CANCEL; no kReply follows. Message streams too.
    void cancel(StreamId stream);

    // -- message streams --

    // As call(), without a message. Its kMessage events hold up the peer until consumed().
    StreamId open_stream(std::string_view path, Nanos timeout_ns, std::string_view metadata);
    void send(StreamId stream, Pieces&& message);
    void half_close(StreamId stream);
    void consumed(StreamId stream, std::uint64_t bytes);
    // Sent and not yet handed out by pull(): of one stream.
    std::uint64_t unsent_bytes(StreamId stream) const;
    // Whether a call would start at once: not draining, peer's SETTINGS seen, below its stream
    // limit.
    bool ready() const;
    // Of all calls and streams: what a message sent now has to wait for.
    std::uint64_t unsent_bytes() const;
    // GOAWAY received, stream ids exhausted or an error: take another connection, this one ends by
    // itself.
    bool draining() const;

    // -- forwarded streams --
    StreamId forward_open(const Headers& headers, bool end_stream);
    void forward_data(StreamId stream, const BufferRef& owner, Span bytes, bool end_stream);
    void forward_consumed(StreamId stream, std::uint64_t bytes);
    void reset(StreamId stream, std::uint32_t http2_error_code);

    // -- bytes out --
    void pull(std::size_t bytes_max, std::vector<Slice>* out);
    bool wants_write() const;
    bool finished() const;
    std::size_t open_streams() const;

  private:
    class State;
    std::unique_ptr<State> state_;
};

}  // namespace infersched::http2
