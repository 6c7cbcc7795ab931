// The load generator without its sockets: keeps calls in flight, or starts them when they are due.
//
// Open loop: a call is due at its intended start, whatever happened to the calls before it, and its
// latency counts from there - a server that stalls is charged for every request that had to wait.
// Closed loop: a fixed number of calls is in flight, a reply starts the next call on its
// connection.
//
// The owner feeds what was read, calls turn() once per loop turn and writes what the dirty
// connections have. Latencies end at the moment the bytes of the reply were read.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/stream_map.h"
#include "base/time.h"
#include "http2/session.h"
#include "loadgen/arrivals.h"
#include "loadgen/histogram.h"

namespace infersched::loadgen {

struct LoadPlan {
    std::string path;  // "/package.Service/Method"
    std::string authority;
    std::uint32_t in_flight = 0;  // closed loop: calls kept in flight, all connections together
    double rate_per_s = 0;        // open loop, Poisson
    std::vector<Nanos> arrivals;  // open loop, given offsets; goes before rate_per_s
    std::uint64_t requests_max = ~0ull;
    Nanos timeout_ns = kNever;    // sent as grpc-timeout
    Nanos objective_ns = kNever;  // goodput counts OK answers within it
    double sample_share = 0;      // of the OK replies kept for comparison
    std::uint64_t sample_bytes_max = 256u << 20;
    std::uint64_t seed = 1;
};

inline constexpr std::size_t kStatusCodes = 17;

// Everything since begin(): what a server must have executed in between.
struct Totals {
    std::uint64_t sent = 0;
    std::uint64_t sent_rows = 0;
    std::uint64_t answered = 0;
    std::uint64_t ok = 0;
    std::uint64_t ok_rows = 0;
    std::uint64_t ok_empty = 0;  // OK without a message: wrong for every method we load
    std::uint64_t connections_lost = 0;
    std::array<std::uint64_t, kStatusCodes> statuses{};
};

// The measured window. Latencies are those of the calls that were due in it, also when they end
// later.
struct Window {
    Nanos began = 0;
    Nanos ended = 0;
    std::uint64_t ok = 0;  // OK replies that came in the window
    std::uint64_t ok_rows = 0;
    std::uint64_t due = 0;
    std::uint64_t good = 0;    // of the due ones: OK within the objective
    std::uint64_t failed = 0;  // of the due ones: another status
    Histogram latency;         // OK ones
    Histogram start_delay;     // intended to actual start: the generator's own lateness
};

struct Sample {
    std::uint32_t payload;
    BufferRef reply;
};

class Generator {
  public:
    explicit Generator(LoadPlan plan);
    ~Generator();

    // Payloads are used in the order they were added, over and over.
    void add_payload(Span message, std::uint32_t rows);

    // -- connections -----------------------------------------------------------------------------
    std::uint32_t connected();
    void received(std::uint32_t connection, Span bytes, Nanos now);
    void connection_lost(std::uint32_t connection);
    void pull(std::uint32_t connection, std::size_t bytes_max, std::vector<Slice>* out);
    void take_dirty(std::vector<std::uint32_t>* connections);
    // Whether every connection has the peer's SETTINGS.
    bool ready() const;

    // -- the load --------------------------------------------------------------------------------
    void begin(Nanos now);
    void window_begin(Nanos now);
    void window_end(Nanos now);
    // No further calls; those in flight are awaited.
    void stop();
    bool stopped() const { return stopped_; }
    std::uint64_t in_flight() const { return in_flight_; }
    void turn(Nanos now);
    Nanos next_wake() const;

    const Totals& totals() const { return totals_; }
    const Window& window() const { return window_; }
    const std::vector<Sample>& samples() const { return samples_; }
    // Text of the first answer that was not OK.
    const std::string& first_error() const { return first_error_; }

  private:
    struct Call {
        Nanos due;
        std::uint32_t payload;
        std::uint32_t next_free;
    };
    struct Connection {
        std::unique_ptr<http2::ClientSession> session;  // empty: lost
        StreamMap calls;                                // stream -> index in calls_ + 1
        std::uint32_t wanted = 0;                       // closed loop: calls to start
        Nanos received_at = 0;
        bool active = false;
        bool dirty = false;
    };
    struct Payload {
        BufferRef message;
        std::uint32_t rows;
    };

    void start_due(Nanos now);
    void start_wanted(std::uint32_t index, Nanos now);
    bool start_call(std::uint32_t index, Nanos due, Nanos now);
    void take_replies(std::uint32_t index);
    void finish_call(const http2::Event& event, std::uint32_t call, Nanos received_at);
    void keep_sample(std::uint32_t payload, Span reply);
    void mark_dirty(std::uint32_t index);

    LoadPlan plan_;
    Arrivals arrivals_;
    Random random_;
    std::uint64_t sample_threshold_;
    std::vector<Payload> payloads_;
    std::vector<Connection> connections_;
    std::vector<Call> calls_;
    std::uint32_t free_call_ = 0;  // index + 1
    std::vector<std::uint32_t> active_;
    std::vector<std::uint32_t> dirty_;
    std::uint32_t next_payload_ = 0;
    std::uint32_t next_connection_ = 0;
    std::uint64_t in_flight_ = 0;
    Nanos began_ = kNever;
    bool stopped_ = false;
    bool in_window_ = false;
    Totals totals_;
    Window window_;
    std::vector<Sample> samples_;
    std::uint64_t sample_bytes_ = 0;
    std::string first_error_;
};

}  // namespace infersched::loadgen
