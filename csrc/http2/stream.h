// One stream of either session, the list of open ones, and the queue of recorded events.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "http2/grpc_framing.h"
#include "http2/output.h"
#include "http2/session.h"

namespace infersched::http2 {

enum class StreamKind : std::uint8_t {
    kUnary,
    kForward,
    kMessages,
    kRefused,  // answered with an error: what still arrives is dropped
};

// What follows the last byte of a stream's body.
enum class BodyEnd : std::uint8_t { kOpen, kEndStream, kTrailers };

// A whole message that the owner has not taken yet.
struct ReadyMessage {
    BufferRef message;
    std::uint64_t bytes;         // as Event::bytes
    std::uint64_t flow_bytes;    // of them: under flow control of its stream
    std::uint64_t window_bytes;  // as Event::window_bytes
    Nanos arrival;
};

struct Stream {
    StreamId id = 0;
    StreamKind kind = StreamKind::kUnary;
    BodyEnd body_end = BodyEnd::kOpen;
    std::uint16_t route = 0;
    bool announced : 1;         // the owner knows it
    bool finished : 1;          // nothing more is told to the owner
    bool closed : 1;            // nghttp2 no longer knows it
    bool remote_ended : 1;      // END_STREAM came
    bool peer_reset : 1;        // client: RST_STREAM came
    bool headers_sent : 1;      // server: answer headers submitted; client: HEADERS left
    bool headers_seen : 1;      // client: the final answer headers were received
    bool body_queued : 1;       // nghttp2 has a data provider for it
    bool sent_recorded : 1;     // a kForwardSent is queued
    bool held : 1;              // its owner wants no more of it now
    std::uint32_t records = 0;  // queued records that point here

    Nanos arrival = 0;
    Nanos deadline = kNever;
    MessageAssembler in;
    Compression out_encoding = Compression::kNone;  // of messages to be sent
    std::uint64_t charged_bytes = 0;                // in the budget and not the owner's yet
    std::uint64_t inflated_bytes = 0;               // of them: beyond what was received
    // Of the message being received: not paid back to the connection's window.
    std::uint64_t unpaid_bytes = 0;
    std::uint64_t uncredited_bytes = 0;  // received and not credited to the stream's window
    // Of whole messages that the owner has not taken (server) or not consumed (client).
    std::uint64_t unclaimed_bytes = 0;
    std::vector<ReadyMessage> ready;
    std::size_t ready_head = 0;
    std::uint64_t sent_bytes = 0;    // left and not reported by kForwardSent
    std::uint32_t header_bytes = 0;  // of the block being received
    OutBody out;
    // Being received. Server: selected metadata (terminated) or all (forwarded); client: custom
    // metadata or all.
    Headers headers;
    Headers watched;                   // of them: those in ServerConfig::watched_headers
    std::uint64_t metadata_bytes = 0;  // server: of both; in the budget until it is closed
    Headers trailers;                  // to be sent after the body; empty = `grpc-status: 0`
    Status refusal;                    // why its headers are refused, decided while they arrive
    std::uint16_t http_status = 200;   // server: of the refusal; client: received
    // Client: what the answer's headers and trailers said.
    Status status;
    bool status_seen = false;
    bool reply_grpc = false;  // its content-type
    AnswerMetadata answer;

    Stream* previous = nullptr;
    Stream* next = nullptr;

    Stream() { clear_flags(); }
    void clear_flags() {
        announced = finished = closed = remote_ended = peer_reset = false;
        headers_sent = headers_seen = body_queued = sent_recorded = held = false;
    }
    void recycle();
    bool has_ready() const { return ready_head < ready.size(); }
    ReadyMessage take_ready();
    void clear_ready();
};

// The open streams of a session. Closed ones are kept for reuse by all sessions of the thread.
class StreamList {
  public:
    StreamList() = default;
    ~StreamList();
    StreamList(const StreamList&) = delete;
    StreamList& operator=(const StreamList&) = delete;

    Stream* open(StreamId id);
    void remove(Stream* stream);
    Stream* first() const { return first_; }
    std::size_t size() const { return size_; }

  private:
    Stream* first_ = nullptr;
    std::size_t size_ = 0;
};

// Events in the order they were recorded. A kRequest, a kForwardSent and those of message streams
// are only a pointer to their stream, other kinds carry the event.
class EventQueue {
  public:
    struct Record {
        Stream* stream;  // null for a carried event
        EventKind kind;
        std::unique_ptr<Event> event;
    };

    void push(Stream* stream, EventKind kind);
    Event* push(EventKind kind, StreamId stream);
    bool empty() const { return head_ == records_.size(); }
    Record pop();
    void clear();

  private:
    std::vector<Record> records_;
    std::size_t head_ = 0;
};

// Makes `event` a fresh one and keeps the memory of its strings.
void reset_event(Event* event, EventKind kind, StreamId stream);

}  // namespace infersched::http2
