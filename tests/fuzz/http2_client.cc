// A server's bytes, in any pieces, into a client session with calls, message streams and forwarded
// streams out. Each call that is not cancelled gets exactly one end.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "frames.h"
#include "http2/session.h"
#include "input.h"
#include "mutate.h"
#include "script.h"

namespace {

using namespace infersched;         // NOLINT
using namespace infersched::http2;  // NOLINT
using fuzz::Input;

constexpr std::string_view kPath = "/inference.GRPCInferenceService/ModelInfer";
constexpr std::string_view kStreamPath = "/inference.GRPCInferenceService/ModelStreamInfer";

struct Owner {
    enum class Kind { kUnary, kStream, kForward };
    ClientSession* session;
    std::map<StreamId, Kind> open;
    // Bytes of messages that were taken and not yet paid back.
    std::map<StreamId, std::uint64_t> held;
    std::size_t left_to_send = 400'000;
    bool takes_events = true;
    bool pays_at_once = true;

    static Pieces message(std::size_t bytes) {
        Pieces pieces;
        const BufferRef data = BufferRef::copy_of(span_of(std::string(bytes, 'm')));
        pieces.append_reference(data, data.span());
        return pieces;
    }
    std::size_t random_size(Input* input) {
        static constexpr std::size_t kSizes[] = {90, 1, 0, 18'000, 300'000};
        const std::size_t size = kSizes[input->choice(5)];
        if (size > left_to_send) return 0;
        left_to_send -= size;
        return size;
    }

    void start(Input* input) {
        static constexpr Nanos kTimeouts[] = {kNever, 5 * kSecond, 1, 1'000'000'000 * kSecond};
        const Nanos timeout = kTimeouts[input->choice(4)];
        const std::string_view metadata("x-a\0001\0", input->flag() ? 0 : 6);
        StreamId stream = 0;
        Kind kind = Kind::kUnary;
        switch (input->choice(4)) {
            case 1:
                kind = Kind::kStream;
                stream = session->open_stream(kStreamPath, timeout, metadata);
                break;
            case 2:
                kind = Kind::kForward;
                stream = session->forward_open(
                    {{":path", "/x.X/Y"}, {":authority", "b"}, {"te", "trailers"}, {"x-a", "1"}},
                    input->flag());
                break;
            default:
                stream = session->call(kPath, timeout, metadata, message(random_size(input)));
        }
        EXPECT(stream != 0 || session->draining());
        if (stream != 0) EXPECT(open.emplace(stream, kind).second);
    }

    void end(StreamId stream, Kind kind) {
        kind == Kind::kForward ? session->reset(stream, 8) : session->cancel(stream);
        open.erase(stream);
        held.erase(stream);
    }

    void go_on(StreamId stream, Kind kind, Input* input) {
        const bool last = input->choice(4) == 1;
        if (kind == Kind::kStream) {
            last ? session->half_close(stream) : session->send(stream, message(random_size(input)));
        } else if (kind == Kind::kForward) {
            const BufferRef data =
                BufferRef::copy_of(span_of(std::string(random_size(input), 'd')));
            session->forward_data(stream, data, data.span(), last);
        }
    }

    void pay(StreamId stream) {
        const std::uint64_t bytes = std::exchange(held[stream], 0);
        session->consumed(stream, bytes);
        session->forward_consumed(stream, bytes);
    }

    void act(Input input) {
        while (input.left() != 0) {
            const std::uint32_t choice = input.choice(8);
            if (choice == 0) start(&input);
            if (choice == 1) takes_events = !takes_events;
            if (choice == 2) pays_at_once = !pays_at_once;
            if (choice < 3 || open.empty()) continue;
            auto at = open.begin();
            std::advance(at, input.choice(static_cast<std::uint32_t>(open.size())));
            const auto [stream, kind] = *at;
            EXPECT(session->unsent_bytes(stream) <= session->unsent_bytes());
            if (choice == 3) {
                end(stream, kind);
            } else if (choice == 4) {
                pay(stream);
            } else {
                go_on(stream, kind, &input);
            }
        }
    }

    void take(const Event& event) {
        const auto known = open.find(event.stream);
        // Cancelled before what had been recorded was taken.
        if (known == open.end()) return;
        switch (event.kind) {
            case EventKind::kReply:
                EXPECT(known->second != Kind::kForward);
                EXPECT(!event.answered || !event.lost);
                EXPECT(!event.status.ok() || event.answered);
                open.erase(known);
                break;
            case EventKind::kMessage:
                EXPECT(known->second == Kind::kStream);
                held[event.stream] += event.bytes;
                break;
            case EventKind::kForwardData:
                EXPECT(known->second == Kind::kForward);
                held[event.stream] += event.message->size();
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
                EXPECT(event.kind == EventKind::kForwardSent);
        }
        if (pays_at_once && held.count(event.stream) != 0) pay(event.stream);
    }

    void take_events() {
        Event event{};
        while (session->next_event(&event)) {
            take(event);
            event = Event();
        }
        EXPECT(!session->has_events());
        EXPECT(!session->ready() || !session->draining());
    }
    void turn() {
        if (takes_events) take_events();
    }
};

ClientConfig make_config(Input* input, ByteBudget* budget) {
    static constexpr std::size_t kMessages[] = {400'000, 2'000, 4 << 20};
    static constexpr std::uint32_t kWindows[] = {16 << 20, 1'000, 100'000};
    ClientConfig config;
    config.authority = "backend";
    config.message_bytes_max = kMessages[input->choice(3)];
    config.compression = static_cast<Compression>(std::max(input->choice(5), 2u) - 2);
    config.stream_window_bytes = kWindows[input->choice(3)];
    if (input->choice(4) == 1) config.connection_window_bytes = 70'000;
    config.encrypted = input->choice(4) == 1;
    if (input->flag()) config.budget = budget;
    return config;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const fuzz::CpuBound bound(size);
    Input input(data, size);
    ByteBudget budget;
    {
        ClientSession session(make_config(&input, &budget));
        Owner owner{&session, {}, {}};
        fuzz::Peer<ClientSession> peer(&session, [&owner] { owner.turn(); });
        const std::uint32_t greeting = input.choice(8);
        if (greeting != 1) peer.send(span_of(fuzz::kSettings));
        for (std::uint32_t count = 1 + input.choice(5); count != 0; --count) owner.start(&input);
        peer.pull(1 << 20);
        if (greeting != 1) peer.send(span_of(fuzz::kSettingsAck));
        fuzz::Script script(input.rest());
        fuzz::Step step;
        while (peer.alive() && script.next(&step)) {
            if (step.type == fuzz::kAct) {
                owner.act({step.payload.data, step.payload.size});
                owner.turn();
            } else {
                peer.take(step);
            }
            peer.pull();
        }
        peer.deliver();
        peer.pull(1 << 20);
        EXPECT(!session.finished() || !session.wants_write());
        session.connection_lost();
        owner.take_events();
        EXPECT(owner.open.empty());
        EXPECT(session.open_streams() == 0);
        EXPECT(session.unsent_bytes() == 0);
        EXPECT(session.finished());
    }
    EXPECT(budget.unsent == 0);
    return 0;
}

fuzz::FrameMutator& fuzz::mutator() {
    static FrameMutator made(
        {{{":status", "200"}, {"content-type", "application/grpc"}}, {{"grpc-status", "0"}}},
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
    return made;
}
