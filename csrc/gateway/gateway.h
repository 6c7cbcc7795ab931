// The data plane without its sockets: connections in, batches out, answers back.
//
// The gateway is where the rooms meet. It owns the HTTP/2 sessions, the requests they brought
// (codec), the engine that decides, and the calls to the backends; the loop shell owns sockets,
// clock and wake-ups:
//
//     received(connection, bytes)   feed one session; callbacks only record
//     turn(now)                     1. take the recorded events  2. step the engine
//                                   3. carry out its actions     4. name the dirty connections
//     pull(connection)              the bytes to write, once per dirty connection and turn
//
// Requests, batches and connections are named by handles of slot maps; a stale one finds nothing.
//
// What changes the state is noexcept: memory that is exhausted in the middle of a turn ends the
// process (it is started again), for half a turn would leave requests without their answer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/time.h"
#include "engine/engine.h"
#include "gateway/config.h"

namespace infersched::gateway {

using ConnectionId = std::uint64_t;  // 0 names nothing

// What the control plane must learn at once (scheduler.v1.Event).
struct Notice {
    enum class Kind : std::uint8_t {
        kBackendConnection,
        kBackendLeaving,
        kMergingSwitchedOff,
        kDrained,
        kSharedMemoryLost,  // `reason`: the region that must not be used any more
        kModelWanted        // `reason`: its name; so many requests for it are `unanswered`
    };
    Kind kind;
    std::uint32_t backend = 0;
    std::uint32_t model = 0;
    bool connected = false;
    std::uint64_t unanswered = 0;
    std::string reason;
};

struct BackendStatus {
    std::uint32_t index, connections_open, connections_wanted;
    std::uint32_t inflight_batches;
    std::uint64_t inflight_rows;
    BackendState state;
    std::string address;
};

struct BatchStatus {
    std::uint32_t model, backend, requests, rows;
    Nanos age_ns;
    bool memory_limited;
};

struct SharedMemoryStatus {
    std::uint64_t used_bytes, backed_bytes;
    std::uint64_t quarantined_calls;
    std::uint64_t calls;  // sent with tensors in shared memory, ever
};

// Requests that wait until a model is loaded.
struct LoadingStatus {
    std::string model;
    std::uint32_t requests;
    std::uint64_t bytes;
    Nanos oldest_arrival;
};

class Gateway {
  public:
    // `page` outlives the gateway.
    explicit Gateway(engine::CountersPage* page);
    ~Gateway();

    // -- steering --------------------------------------------------------------------------------
    // All or nothing; the error text is empty when it took effect.
    std::string apply(const WantedState& wanted, Nanos now) noexcept;
    void set_device(std::uint32_t device, const engine::DeviceMemory& memory, Nanos now) noexcept;
    // Ends with the notice kDrained when all is answered and the answers are written, at the latest
    // at `deadline`. May be asked for again.
    void drain(Nanos deadline, Nanos now) noexcept;
    bool take_notice(Notice* notice);

    // -- connections -----------------------------------------------------------------------------
    // 0: too many connections, close it.
    ConnectionId client_connected(const std::string& peer_address, Nanos now) noexcept;
    // 0: the backend is not wanted any more, or at another address: close it.
    ConnectionId backend_connected(std::uint32_t backend, const std::string& address,
                                   Nanos now) noexcept;
    // The one connection to the control plane's cold servicers.
    ConnectionId cold_connected(Nanos now) noexcept;
    void received(ConnectionId connection, Span bytes, Nanos now) noexcept;
    // Where bytes may be read for the next received(), without a copy; empty: anywhere.
    Space receive_space(ConnectionId connection) noexcept;
    void connection_lost(ConnectionId connection, const std::string& reason, Nanos now) noexcept;
    // One connection to a backend is no longer wanted: closed once its calls are done.
    void retire(ConnectionId connection) noexcept;

    // -- the loop turn ---------------------------------------------------------------------------
    // True: work was left over (fairness limits), call again in the next turn of the loop.
    bool turn(Nanos now) noexcept;
    // When turn() must be called if nothing arrives before; kNever = not at all.
    Nanos next_wake() const;
    // Connections that may have something to write, those to close, and those that another one must
    // be dialled for because they take no more calls; each list is cleared by the call.
    void take_dirty(std::vector<ConnectionId>* connections);
    void take_closing(std::vector<ConnectionId>* connections);
    void take_retired(std::vector<ConnectionId>* connections);
    // Whether the pulls have left something for a next turn.
    bool wants_turn() const;
    // At the end of the turn that began at `started`: how long the loop is to leave what comes to
    // gather, from `now` on; 0 = not at all.
    Nanos gather_ns(Nanos started, Nanos now);
    // Appends what can be written now. Afterwards the connection is dirty again if more is left.
    void pull(ConnectionId connection, std::size_t bytes_max, std::vector<Slice>* out) noexcept;
    bool wants_read(ConnectionId connection) const;

    // -- what is seen from outside ---------------------------------------------------------------
    std::uint64_t generation() const;
    bool draining() const;
    std::vector<BackendStatus> backends() const;
    std::vector<BatchStatus> batches(Nanos now) const;
    engine::QueueStatus queue_status(std::uint32_t model) const;
    std::vector<std::uint32_t> models() const;
    // Indices of the backends that the model is placed on.
    std::vector<std::uint32_t> placements(std::uint32_t model) const;
    // Indices of the devices that its instances are on.
    std::vector<std::uint32_t> devices(std::uint32_t model) const;
    std::uint64_t host_bytes() const;
    std::uint32_t client_connections() const;
    SharedMemoryStatus shared_memory() const;
    std::vector<LoadingStatus> loading() const;  // of models that requests wait for
    const engine::Engine& scheduler() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace infersched::gateway
