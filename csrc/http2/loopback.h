// A client and a server session talking to each other in memory: what benchmarks measure.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infersched::http2 {

struct LoopbackLoad {
    std::uint64_t requests = 100'000;
    std::size_t in_flight = 64;       // calls answered per round trip
    std::size_t request_bytes = 128;  // of the message
    std::size_t reply_bytes = 128;
};

struct LoopbackResult {
    std::uint64_t answered = 0;      // replies with status OK and the expected message
    std::uint64_t server_bytes = 0;  // sent by the server
    std::uint64_t client_bytes = 0;  // sent by the client
    std::uint64_t server_ticks = 0;  // spent in the server session, in units of `ticks()`
    std::uint64_t total_ticks = 0;
};

// `ticks` is the caller's clock: this room has none.
LoopbackResult run_loopback(const LoopbackLoad& load, std::uint64_t (*ticks)());

}  // namespace infersched::http2
