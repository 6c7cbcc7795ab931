// ModelStreamInfer calls of clients, and the streams opened to backends for them.
//
// Each message of a client's stream is a request like any other. Those of plain models are batched
// with everyone else's, and their replies leave in the order of the requests. Those of decoupled
// and sequence models go, alone, over a stream to the backend that is opened at the first use: one
// for each client stream and backend and for each of the two kinds (Triton 2.51 hangs or dies when
// replies of both meet on one stream). Replies are matched there by an id of ours.
//
// Memory is bounded by what the client reads: while much is unsent on its stream, its further
// requests are held and it gets no new window, nor do its backend streams.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "gateway/requests.h"

namespace infersched::gateway {

// A client's stream is stalled while more than this of its answers is unsent,
inline constexpr std::uint64_t kStreamUnsentMax = 1u << 20;
// or while so many of its replies, or so many bytes of them, wait for earlier ones.
inline constexpr std::size_t kStreamOrderedMax = 1024;
inline constexpr std::uint64_t kStreamOrderedBytesMax = 64u << 20;

// A backend's stream may go on for so long when that of its client has ended; so many of them.
inline constexpr Nanos kLingerNs = 1 * kSecond;
inline constexpr std::size_t kLingeringMax = 1024;

// The place of one reply among those that leave in order.
struct OrderedReply {
    bool ready = false;
    Pieces message;
};

// Messages of a client's stream that were not looked at yet, in their order. They may be held for
// long and close the window of their stream only: that of their connection is paid back.
class HeldMessages {
  public:
    void push_back(http2::Event&& event, http2::ServerSession* session) {
        set_aside(&event, session);
        events_.push_back(std::move(event));
    }
    void push_front(http2::Event&& event, http2::ServerSession* session) {
        set_aside(&event, session);
        events_.push_front(std::move(event));
    }
    http2::Event take_front() {
        http2::Event event = std::move(events_.front());
        events_.pop_front();
        bytes_ -= event.bytes;
        return event;
    }
    void clear() {
        events_.clear();
        bytes_ = 0;
    }
    const http2::Event& front() const { return events_.front(); }
    bool empty() const { return events_.empty(); }
    std::uint64_t bytes() const { return bytes_; }

  private:
    void set_aside(http2::Event* event, http2::ServerSession* session) {
        session->set_aside(std::exchange(event->window_bytes, 0));
        bytes_ += event->bytes;
    }

    std::deque<http2::Event> events_;
    std::uint64_t bytes_ = 0;
};

struct ClientStream {
    ConnectionId connection = 0;
    http2::StreamId stream = 0;
    Nanos deadline = kNever;
    SharedText metadata;         // forwarded headers, canonical
    http2::Headers headers;      // watched ones
    bool ends_at_error = false;  // triton_grpc_error: the first failed execution ends the stream
    bool half_closed = false;
    bool stalled = false;             // in the connection's list
    std::uint64_t parked = 0;         // not 0: the first message that is held waits for its model
    std::vector<RequestId> requests;  // admitted and not answered
    std::deque<OrderedReply> ordered;
    std::uint64_t ordered_first = 0;  // number of the reply at the front
    std::uint64_t ordered_bytes = 0;
    HeldMessages held;
    std::vector<BackendStreamId> backend_streams;
    http2::AnswerMetadata answer;  // of the first backend stream that brought any
};

// The models whose requests a stream to a backend has carried. So many, and another one follows.
inline constexpr std::size_t kCarriedModelsMax = 16;

class CarriedModels {
  public:
    // Nothing, when it is full: the stream is about to end anyway.
    void add(std::uint32_t model) {
        if (full()) return;
        if (std::find(begin(), end(), model) == end()) models_[count_++] = model;
    }
    bool full() const { return count_ == kCarriedModelsMax; }
    const std::uint32_t* begin() const { return models_.data(); }
    const std::uint32_t* end() const { return models_.data() + count_; }

  private:
    std::array<std::uint32_t, kCarriedModelsMax> models_{};
    std::uint32_t count_ = 0;
};

struct BackendStream {
    ConnectionId connection = 0;
    http2::StreamId stream = 0;
    std::uint32_t backend = 0;
    bool decoupled = false;
    bool lingering = false;  // its client's stream has ended
    bool retiring = false;   // at the end of the turn:
    bool retired = false;    // half-closed: what it has carried is answered, then it ends
    CarriedModels carried;
    ClientStreamId client = 0;
    std::vector<BatchId> batches;    // their final reply has not come
    std::uint64_t unpaid_bytes = 0;  // received, and no window given back yet
};

}  // namespace infersched::gateway
