// A server's bytes, in any pieces, into a client session with calls, message streams and forwarded
// streams out. Each call that is not cancelled gets exactly one end.
#include <map>
#include <string>
#include <vector>

#include "frames.h"
#include "http2/session.h"
#include "input.h"

namespace {

using namespace infersched;         // NOLINT
using namespace infersched::http2;  // NOLINT
using fuzz::Input;

constexpr std::string_view kPath = "/inference.GRPCInferenceService/ModelInfer";
constexpr std::string_view kStreamPath = "/inference.GRPCInferenceService/ModelStreamInfer";

struct Owner {
    enum class Kind { kUnary, kStream, kForward };
    ClientSession* session;
    Input* input;
    std::map<StreamId, Kind> open;

    static Pieces message(std::size_t bytes) {
        Pieces pieces;
        const BufferRef data = BufferRef::copy_of(span_of(std::string(bytes, 'm')));
        pieces.append_reference(data, data.span());
        return pieces;
    }
    std::size_t random_size() {
        static const std::size_t kSizes[] = {1, 90, 90, 18'000};
        return kSizes[input->choice(4)];
    }

    void start() {
        const Nanos timeout = input->flag() ? kNever : 5 * kSecond;
        StreamId stream = 0;
        Kind kind = Kind::kUnary;
        switch (input->choice(4)) {
            case 0:
                kind = Kind::kStream;
                stream = session->open_stream(kStreamPath, timeout, {});
                break;
            case 1:
                kind = Kind::kForward;
                stream = session->forward_open({{":path", "/x.X/Y"}, {"te", "trailers"}}, false);
                break;
            default:
                stream = session->call(kPath, timeout, std::string_view("x-a\0001\0", 6),
                                       message(random_size()));
        }
        if (stream != 0) EXPECT(open.emplace(stream, kind).second);
    }

    void act(StreamId stream, Kind kind) {
        const std::uint32_t choice = input->choice(4);
        if (choice == 0) {
            kind == Kind::kForward ? session->reset(stream, 8) : session->cancel(stream);
            open.erase(stream);
        } else if (kind == Kind::kStream) {
            choice == 1 ? session->half_close(stream)
                        : session->send(stream, message(random_size()));
        } else if (kind == Kind::kForward) {
            const BufferRef data = BufferRef::copy_of(span_of(std::string(random_size(), 'd')));
            session->forward_data(stream, data, data.span(), choice == 1);
        }
    }

    void take(const Event& event) {
        const auto known = open.find(event.stream);
        EXPECT(known != open.end());
        switch (event.kind) {
            case EventKind::kReply:
                EXPECT(known->second != Kind::kForward);
                open.erase(known);
                break;
            case EventKind::kMessage:
                EXPECT(known->second == Kind::kStream);
                if (input->flag()) session->consumed(event.stream, event.bytes);
                break;
            case EventKind::kForwardData:
                session->forward_consumed(event.stream, event.message->size());
                if (event.end_stream) open.erase(known);
                break;
            case EventKind::kForwardHeaders:
                EXPECT(known->second == Kind::kForward);
                break;
            case EventKind::kForwardTrailers:
            case EventKind::kForwardReset:
                EXPECT(known->second == Kind::kForward);
                open.erase(known);
                break;
            default:
                break;
        }
    }

    void turn(bool acting) {
        Event event{};
        while (session->next_event(&event)) {
            take(event);
            event = Event();
        }
        EXPECT(!session->has_events());
        EXPECT(!session->ready() || !session->draining());
        if (!acting) return;
        for (std::uint32_t acts = input->choice(3); acts != 0 && !open.empty(); --acts) {
            auto at = open.begin();
            std::advance(at, input->choice(static_cast<std::uint32_t>(open.size())));
            act(at->first, at->second);
        }
        if (input->choice(4) == 1) start();
    }
};

void pull(ClientSession* session, std::size_t bytes) {
    std::vector<Slice> slices;
    session->pull(bytes, &slices);
    for (const Slice& slice : slices) EXPECT(slice.bytes.size == 0 || slice.bytes.data != nullptr);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    ClientConfig config;
    config.authority = "backend";
    config.message_bytes_max = input.flag() ? 100'000 : 2'000;
    config.compression = input.choice(16) == 1 ? Compression::kGzip : Compression::kNone;
    ClientSession session(config);
    Owner owner{&session, &input, {}};
    const std::string settings("\0\0\0\x04\0\0\0\0\0", 9);
    bool alive =
        input.choice(8) == 1 || session.feed(fuzz::exact_copy(span_of(settings)).span(), 1);
    for (std::uint32_t count = 1 + input.choice(5); count != 0; --count) owner.start();
    pull(&session, 1 << 20);
    Nanos now = 1;
    while (alive && input.left() != 0) {
        static const std::size_t kPieces[] = {1, 9, 100, 1'000, 1 << 20, 1 << 20};
        const std::size_t piece = kPieces[input.choice(6)];
        alive = fuzz::feed(&session, &input, piece, now += kMillisecond);
        owner.turn(true);
        pull(&session, input.flag() ? 1 << 20 : 100);
    }
    session.connection_lost();
    owner.turn(false);
    EXPECT(owner.open.empty());
    EXPECT(session.open_streams() == 0);
    return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t size_max, unsigned seed) {
    static fuzz::FrameMutator mutator(
        {{":status", "200"}, {"content-type", "application/grpc"}},
        {{"grpc-status", {"0", "0", "0", "8", "14", "17", "x"}},
         {"grpc-message", {"", "no%0a%41", "%zz%", "\x7f"}},
         {"grpc-status-details-bin", {"", "AAE", "AAEC", "?"}},
         {"grpc-retry-pushback-ms", {"0", "250", "-1", "99999999999"}},
         {"grpc-encoding", {"gzip", "deflate", "identity", "snappy"}},
         {"content-type", {"text/html", "application/grpc+proto"}},
         {":status", {"100", "200", "204", "400", "401", "403", "404", "429", "503", "x"}},
         {"x-a", {"", "1"}},
         {"x-b-bin", {"AAE", "?"}},
         {"connection", {"close"}},
         {"content-length", {"0", "5", "x"}},
         {"trailer", {"x-a"}}});
    return mutator.mutate(data, size, size_max, seed);
}
