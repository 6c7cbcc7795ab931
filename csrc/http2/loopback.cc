#include "http2/loopback.h"

#include <cstring>
#include <string>
#include <vector>

#include "http2/session.h"

namespace infersched::http2 {

namespace {

constexpr std::string_view kPath = "/inference.GRPCInferenceService/ModelInfer";
constexpr std::size_t kPullBytes = 256u << 10;
constexpr Nanos kTimeout = 5 * kSecond;

// One wire: what a session wrote, joined as a read would bring it.
struct Wire {
    std::vector<Slice> slices;
    std::vector<std::uint8_t> bytes;

    template <typename Session>
    void pull(Session* session) {
        slices.clear();
        session->pull(kPullBytes, &slices);
    }
    std::size_t join() {
        bytes.clear();
        for (const Slice& slice : slices)
            bytes.insert(bytes.end(), slice.bytes.data, slice.bytes.data + slice.bytes.size);
        slices.clear();
        return bytes.size();
    }
    Span span() const { return {bytes.data(), bytes.size()}; }
};

Pieces message_of(const BufferRef& payload) {
    Pieces message;
    message.append_reference(payload, payload.span());
    return message;
}

class Loopback {
  public:
    Loopback(const LoopbackLoad& load, std::uint64_t (*ticks)())
        : load_(load), ticks_(ticks), server_(&server_config_, &budget_), client_(client_config_) {
        const std::string request(load.request_bytes, 'q');
        const std::string reply(load.reply_bytes, 'r');
        request_ = BufferRef::copy_of(span_of(request));
        reply_ = BufferRef::copy_of(span_of(reply));
    }

    LoopbackResult run();

  private:
    static ServerConfig make_server_config() {
        ServerConfig config;
        config.routes.push_back({std::string(kPath), RouteKind::kUnary, {}});
        return config;
    }
    static ClientConfig make_client_config() {
        ClientConfig config;
        config.authority = "loopback";
        return config;
    }

    void turn();

    const LoopbackLoad load_;
    std::uint64_t (*ticks_)();
    ServerConfig server_config_ = make_server_config();
    ClientConfig client_config_ = make_client_config();
    ByteBudget budget_;
    ServerSession server_;
    ClientSession client_;
    BufferRef request_;
    BufferRef reply_;
    Wire up_;
    Wire down_;
    Event event_{};
    Nanos now_ = 0;
    std::size_t in_flight_ = 0;
    std::uint64_t failed_ = 0;
    std::uint64_t rounds_ = 0;
    LoopbackResult result_;
};

LoopbackResult Loopback::run() {
    const std::uint64_t start = ticks_();
    turn();
    turn();
    std::uint64_t called = 0;
    while (result_.answered + failed_ < load_.requests) {
        for (; in_flight_ < load_.in_flight && called < load_.requests; ++called, ++in_flight_)
            client_.call(kPath, kTimeout, {}, message_of(request_));
        turn();
        if (++rounds_ > load_.requests * 1000 + 1000) break;
    }
    result_.total_ticks = ticks_() - start;
    return result_;
}

void Loopback::turn() {
    up_.pull(&client_);
    result_.client_bytes += up_.join();
    const std::uint64_t start = ticks_();
    server_.feed(up_.span(), ++now_);
    while (server_.next_event(&event_)) {
        if (event_.kind != EventKind::kRequest) continue;
        server_.answer(event_.stream, message_of(reply_));
        server_.release(event_.bytes, event_.window_bytes);
    }
    down_.pull(&server_);
    result_.server_ticks += ticks_() - start;
    result_.server_bytes += down_.join();
    client_.feed(down_.span(), now_);
    while (client_.next_event(&event_)) {
        if (event_.kind != EventKind::kReply) continue;
        --in_flight_;
        const bool good = event_.status.ok() && event_.message.span().size == reply_->size() &&
                          std::memcmp(event_.message->data(), reply_->data(), reply_->size()) == 0;
        good ? ++result_.answered : ++failed_;
    }
}

}  // namespace

LoopbackResult run_loopback(const LoopbackLoad& load, std::uint64_t (*ticks)()) {
    return Loopback(load, ticks).run();
}

}  // namespace infersched::http2
