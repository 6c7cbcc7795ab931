// A client's bytes, in any pieces, into a server session whose owner answers, refuses, resets,
// streams, sets aside, drains and loses what is announced. In the end nothing is held.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "frames.h"
#include "http2/session.h"
#include "input.h"

namespace {

using namespace infersched;         // NOLINT
using namespace infersched::http2;  // NOLINT
using fuzz::Input;

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
constexpr std::size_t kPrefaceBytes = 24 + 9;

ServerConfig make_config(std::uint32_t kind) {
    ServerConfig config;
    config.routes = {
        {"/inference.GRPCInferenceService/ModelInfer", RouteKind::kUnary, {}},
        {"/inference.GRPCInferenceService/ModelStreamInfer", RouteKind::kMessageStream, {}},
        {"/x.X/Gone", RouteKind::kUnimplemented, "gone"},
    };
    config.message_bytes_max = kind & 1 ? 100'000 : 5'000;
    config.streams_max = kind & 2 ? 100 : 3;
    config.unsent_answer_bytes_max = 20'000;
    config.forward_metadata = {"x-a", "x-b"};
    config.watched_headers = {"x-w"};
    config.internal_headers = {"x-internal"};
    config.response_compression = kind == 4 ? Compression::kGzip : Compression::kNone;
    return config;
}

// What is announced and not yet ended.
struct Owner {
    enum class Kind { kUnary, kStream, kForward };
    ServerSession* session;
    Input* input;
    std::map<StreamId, Kind> open;
    std::uint64_t held = 0;
    std::uint64_t aside = 0;

    static Pieces message(std::size_t bytes) {
        static const BufferRef large = BufferRef::copy_of(span_of(std::string(20'000, 'm')));
        Pieces pieces;
        pieces.append_copy({large->data(), bytes < 100 ? bytes : 100});
        if (bytes > 100) pieces.append_reference(large, {large->data(), bytes - 100});
        return pieces;
    }
    std::size_t random_size() {
        static const std::size_t kSizes[] = {0, 1, 90, 90, 2'000, 18'000};
        return kSizes[input->choice(6)];
    }
    AnswerMetadata metadata() {
        AnswerMetadata metadata;
        if (input->flag()) metadata.headers.emplace_back("x-h", "1");
        if (input->flag()) metadata.trailers.emplace_back("x-t-bin", std::string("\0\xff", 2));
        return metadata;
    }

    void end(StreamId stream) {
        const AnswerMetadata custom = metadata();
        switch (input->choice(5)) {
            case 0:
                session->refuse(stream, Status::error(StatusCode::kInternal, "no: \n%"), &custom);
                break;
            case 1:
                session->reset(stream, 8);
                break;
            default:
                if (open[stream] == Kind::kUnary) {
                    session->answer(stream, message(random_size()), &custom);
                } else if (open[stream] == Kind::kStream) {
                    session->finish(stream, Status(), &custom);
                } else {
                    session->forward_trailers(stream, {{"grpc-status", "0"}});
                }
        }
        open.erase(stream);
    }

    void go_on(StreamId stream) {
        if (open[stream] == Kind::kStream) {
            const AnswerMetadata custom = metadata();
            session->send(stream, message(random_size()), &custom);
        } else if (open[stream] == Kind::kForward) {
            const BufferRef data = exact(random_size());
            session->forward_data(stream, data, data->size() == 0 ? Span() : data.span());
        }
    }
    static BufferRef exact(std::size_t bytes) {
        return BufferRef::copy_of(span_of(std::string(bytes, 'd')));
    }

    void take(const Event& event) {
        switch (event.kind) {
            case EventKind::kRequest:
                EXPECT(open.emplace(event.stream, Kind::kUnary).second);
                held += event.bytes;
                break;
            case EventKind::kStreamOpened:
                EXPECT(open.emplace(event.stream, Kind::kStream).second);
                break;
            case EventKind::kMessage:
                held += event.bytes;
                break;
            case EventKind::kForwardHeaders:
                EXPECT(open.emplace(event.stream, Kind::kForward).second);
                if (input->flag())
                    session->forward_headers(event.stream, {{":status", "200"}}, false);
                break;
            case EventKind::kForwardData:
                session->forward_consumed(event.stream, event.message->size());
                break;
            case EventKind::kCancelled:
            case EventKind::kForwardReset:
                open.erase(event.stream);
                break;
            default:
                break;
        }
    }

    void turn() {
        Event event{};
        while (session->next_event(&event)) {
            take(event);
            event = Event();
        }
        for (std::uint32_t acts = input->choice(4); acts != 0 && !open.empty(); --acts) {
            auto at = open.begin();
            std::advance(at, input->choice(static_cast<std::uint32_t>(open.size())));
            input->flag() ? end(at->first) : go_on(at->first);
        }
        switch (input->choice(3)) {
            case 0:
                release();
                break;
            case 1:
                session->set_aside(held);
                aside += std::exchange(held, 0);
                break;
            default:
                session->take_back(aside);
                held += std::exchange(aside, 0);
        }
        if (input->choice(100) == 1) session->begin_drain();
    }
    void release() { session->release(std::exchange(held, 0)); }
};

void pull(ServerSession* session, std::size_t bytes) {
    std::vector<Slice> slices;
    session->pull(bytes, &slices);
    std::size_t sum = 0;
    for (const Slice& slice : slices) sum += slice.bytes.size == 0 ? 0 : slice.bytes.data[0];
    EXPECT(sum <= slices.size() * 255);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    const ServerConfig config = make_config(input.choice(8));
    ByteBudget budget;
    budget.max = input.flag() ? 1 << 20 : 8'000;
    const bool greeted = input.flag();
    {
        ServerSession session(&config, &budget);
        Owner owner{&session, &input, {}, 0, 0};
        bool alive = true;
        if (greeted) {
            const std::string greeting(kPreface.data(), kPrefaceBytes);
            alive = session.feed(fuzz::exact_copy(span_of(greeting)).span(), 1);
        }
        Nanos now = 1;
        static const std::size_t kPulls[] = {0, 1, 1'000, 1 << 20};
        while (alive && input.left() != 0) {
            static const std::size_t kPieces[] = {1, 9, 100, 1'000, 1 << 20, 1 << 20};
            const std::size_t piece = kPieces[input.choice(6)];
            alive = fuzz::feed(&session, &input, piece, now += kMillisecond);
            owner.turn();
            pull(&session, kPulls[input.choice(4)]);
        }
        pull(&session, 1 << 20);
        session.connection_lost();
        owner.turn();
        session.take_back(owner.aside);
        owner.held += owner.aside;
        owner.release();
        Event event{};
        EXPECT(!session.next_event(&event));
        EXPECT(owner.open.empty());
        EXPECT(session.open_streams() == 0);
    }
    EXPECT(budget.used == 0);
    EXPECT(budget.unsent == 0);
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t size_max, unsigned seed) {
    static fuzz::FrameMutator mutator(
        {{":method", "POST"},
         {":scheme", "http"},
         {":path", "/inference.GRPCInferenceService/ModelInfer"},
         {":authority", "a"},
         {"te", "trailers"},
         {"content-type", "application/grpc"}},
        {{":path",
          {"/inference.GRPCInferenceService/ModelStreamInfer", "/x.X/Gone", "/x.X/Y", "", "*"}},
         {":method", {"GET", "POST", "PRI"}},
         {":scheme", {"https", ""}},
         {":authority", {"b", ""}},
         {":protocol", {"websocket"}},
         {"content-type", {"text/html", "application/grpc+proto", "application/grpc-web"}},
         {"te", {"gzip"}},
         {"grpc-timeout", {"5S", "1n", "99999999H", "999999999S", "S", "0m", "-1S"}},
         {"grpc-encoding", {"gzip", "deflate", "identity", "snappy"}},
         {"grpc-accept-encoding", {"gzip", "deflate, gzip", ",", "identity,x"}},
         {"content-length", {"0", "5", "x"}},
         {"x-a", {"", "1", "\xff"}},
         {"x-b", {"2"}},
         {"x-w", {"3"}},
         {"x-c-bin", {"AAE", "?"}},
         {"x-internal", {"4"}},
         {"connection", {"close"}},
         {"user-agent", {"u"}}});
    return mutator.mutate(data, size, size_max, seed);
}
