// A client's bytes, in any pieces, into a server session whose owner answers, refuses, resets,
// streams, sets aside, drains and loses what is announced. In the end nothing is held.
#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/shared_blocks.h"
#include "frames.h"
#include "http2/session.h"
#include "input.h"
#include "mutate.h"
#include "script.h"

namespace {

using namespace infersched;         // NOLINT
using namespace infersched::http2;  // NOLINT
using fuzz::Input;

// The segment for large messages; of what is left at the end none is lost.
void adopt_segment() {
    static std::vector<std::uint8_t>* const memory = [] {
        auto* made = new std::vector<std::uint8_t>((4 << 20) + SharedBlocks::kStepBytes);
        void* begin = made->data();
        std::size_t size = made->size();
        EXPECT(std::align(SharedBlocks::kStepBytes, 4 << 20, begin, size) != nullptr);
        shared_blocks().adopt(static_cast<std::uint8_t*>(begin), 4 << 20, -1);
        return made;
    }();
    EXPECT(!memory->empty());
}

std::size_t some_alignment(Span head) { return head.size % 100; }

ServerConfig make_config(Input* input) {
    static constexpr std::size_t kMessages[] = {400'000, 5'000, 4 << 20};
    static constexpr std::uint32_t kWindows[] = {1 << 20, 1'000, 160 << 10};
    ServerConfig config;
    config.routes = {
        {"/inference.GRPCInferenceService/ModelInfer", RouteKind::kUnary, {}},
        {"/inference.GRPCInferenceService/ModelStreamInfer", RouteKind::kMessageStream, {}},
        {"/x.X/Gone", RouteKind::kUnimplemented, "gone"},
        {"/x.X/Known", RouteKind::kForward, {}},
    };
    config.message_bytes_max = kMessages[input->choice(3)];
    config.streams_max = input->flag() ? 100 : 3;
    config.stream_window_bytes = kWindows[input->choice(3)];
    if (input->choice(4) == 1) config.connection_window_bytes = 70'000;
    if (input->choice(4) == 1) config.header_list_bytes_max = 300;
    config.unsent_answer_bytes_max = 20'000;
    config.forward_metadata = {"x-a", "x-b"};
    config.watched_headers = {"x-w"};
    config.internal_headers = {"x-internal"};
    config.response_compression = static_cast<Compression>(input->choice(3));
    if (input->flag()) config.shared_alignment = some_alignment;
    if (input->flag()) config.paced_until = kNever;
    return config;
}

// What is announced and not yet ended.
struct Owner {
    enum class Kind { kUnary, kStream, kForward };
    ServerSession* session;
    std::map<StreamId, Kind> open;
    struct Held {
        std::uint64_t bytes;
        std::uint64_t window_bytes;
    };
    std::deque<Held> held;
    std::size_t left_to_send = 400'000;
    bool takes_events = true;
    bool answers_headers = true;

    static Pieces message(std::size_t bytes) {
        static const BufferRef large = BufferRef::copy_of(span_of(std::string(300'000, 'm')));
        Pieces pieces;
        pieces.append_copy({large->data(), bytes < 100 ? bytes : 100});
        if (bytes > 100) pieces.append_reference(large, {large->data(), bytes - 100});
        return pieces;
    }
    std::size_t random_size(Input* input) {
        static constexpr std::size_t kSizes[] = {90, 0, 1, 2'000, 18'000, 300'000};
        const std::size_t size = kSizes[input->choice(6)];
        if (size > left_to_send) return 0;
        left_to_send -= size;
        return size;
    }
    static AnswerMetadata metadata(Input* input) {
        AnswerMetadata metadata;
        if (input->flag()) metadata.headers.emplace_back("x-h", "1");
        if (input->flag()) metadata.trailers.emplace_back("x-t-bin", std::string("\0\xff", 2));
        return metadata;
    }
    static Status refusal(Input* input) {
        static constexpr std::size_t kDetails[] = {0, 2, 30'000};
        Status status = Status::error(StatusCode::kInternal, "no: \n%");
        if (input->choice(4) == 1) status.message = std::string(20'000, '\xe4');
        status.details = std::string(kDetails[input->choice(3)], 'd');
        if (input->flag()) status.retry_pushback_ms = 100;
        return status;
    }

    void end(StreamId stream, Input* input) {
        const AnswerMetadata custom = metadata(input);
        const Kind kind = open[stream];
        const std::uint32_t choice = input->choice(5);
        if (choice == 0) {
            session->refuse(stream, refusal(input), &custom);
        } else if (choice == 1) {
            session->reset(stream, 8);
        } else if (kind == Kind::kUnary) {
            session->answer(stream, message(random_size(input)), &custom);
        } else if (kind == Kind::kStream) {
            session->finish(stream, input->flag() ? refusal(input) : Status(), &custom);
        } else if (choice == 2) {
            session->forward_headers(stream, {{":status", "404"}}, true);
        } else {
            session->forward_trailers(stream, {{"grpc-status", "0"}});
        }
        open.erase(stream);
    }

    void go_on(StreamId stream, Input* input) {
        if (open[stream] == Kind::kStream) {
            const AnswerMetadata custom = metadata(input);
            session->send(stream, message(random_size(input)), &custom);
            session->hold(stream, input->choice(4) == 1);
        } else if (open[stream] == Kind::kForward) {
            if (input->choice(4) == 1)
                session->forward_headers(stream, {{":status", "200"}}, false);
            const BufferRef data = exact(random_size(input));
            session->forward_data(stream, data, data->size() == 0 ? Span() : data.span());
        }
        EXPECT(session->unsent_bytes(stream) <= session->unsent_answer_bytes());
    }
    static BufferRef exact(std::size_t bytes) {
        return BufferRef::copy_of(span_of(std::string(bytes, 'd')));
    }

    void act(Input input) {
        while (input.left() != 0) {
            const std::uint32_t choice = input.choice(11);
            if (choice == 0) release(held.size());
            if (choice == 1) takes_events = !takes_events;
            if (choice == 2) answers_headers = !answers_headers;
            if (choice == 3) set_aside();
            if (choice == 4) release(std::min<std::size_t>(held.size(), 1));
            if (choice == 5 && input.choice(8) == 1) session->begin_drain();
            if (choice < 6 || open.empty()) continue;
            auto at = open.begin();
            std::advance(at, input.choice(static_cast<std::uint32_t>(open.size())));
            choice < 9 ? end(at->first, &input) : go_on(at->first, &input);
        }
    }

    void take(const Event& event) {
        switch (event.kind) {
            case EventKind::kRequest:
                EXPECT(open.emplace(event.stream, Kind::kUnary).second);
                held.push_back({event.bytes, event.window_bytes});
                break;
            case EventKind::kStreamOpened:
                EXPECT(open.emplace(event.stream, Kind::kStream).second);
                break;
            case EventKind::kMessage:
                held.push_back({event.bytes, event.window_bytes});
                break;
            case EventKind::kForwardHeaders:
                EXPECT(open.emplace(event.stream, Kind::kForward).second);
                if (answers_headers)
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

    void take_events() {
        Event event{};
        while (session->next_event(&event)) {
            take(event);
            event = Event();
        }
    }
    void turn() {
        if (takes_events) take_events();
    }
    void release(std::size_t count) {
        for (; count > 0; --count) {
            session->release(held.front().bytes, held.front().window_bytes);
            held.pop_front();
        }
    }
    void set_aside() {
        for (Held& message : held) session->set_aside(std::exchange(message.window_bytes, 0));
    }
    std::uint64_t window_bytes() const {
        std::uint64_t bytes = 0;
        for (const Held& message : held) bytes += message.window_bytes;
        return bytes;
    }
};

// The session's life.
void run(const ServerConfig& config, ByteBudget* budget, Input* input) {
    ServerSession session(&config, budget);
    Owner owner{&session, {}};
    fuzz::Peer<ServerSession> peer(&session, [&owner] { owner.turn(); });
    if (input->choice(4) != 1) {
        peer.send(span_of(fuzz::kClientMagic));
        peer.send(span_of(fuzz::kSettings));
        peer.pull(1 << 20);
        peer.send(span_of(fuzz::kSettingsAck));
    }
    fuzz::Script script(input->rest());
    fuzz::Step step;
    while (peer.alive() && script.next(&step)) {
        if (step.type == fuzz::kAct) {
            owner.act({step.payload.data, step.payload.size});
            owner.turn();
        } else if (session.wants_read() || !owner.takes_events) {
            peer.take(step);
        }
        peer.pull();
        EXPECT(session.unsent_answer_bytes() == budget->unsent);
        EXPECT(session.unpaid_window_bytes() >= owner.window_bytes());
        EXPECT(session.unpaid_window_bytes() <= config.connection_window_bytes);
    }
    peer.deliver();
    peer.pull(1 << 20);
    // What was put off comes with further pulls.
    for (owner.take_events(); session.has_events(); owner.take_events()) peer.pull(1 << 20);
    EXPECT(!session.finished() || !session.wants_write());
    session.connection_lost();
    owner.take_events();
    EXPECT(session.unpaid_window_bytes() == owner.window_bytes());
    owner.release(owner.held.size());
    EXPECT(session.unpaid_window_bytes() == 0);
    Event event{};
    EXPECT(!session.next_event(&event));
    EXPECT(owner.open.empty());
    EXPECT(session.open_streams() == 0);
    EXPECT(session.finished());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const fuzz::CpuBound bound(size);
    adopt_segment();
    Input input(data, size);
    const ServerConfig config = make_config(&input);
    static constexpr std::uint64_t kBudgets[] = {1 << 20, 8'000, 64 << 20};
    ByteBudget budget;
    budget.max = kBudgets[input.choice(3)];
    run(config, &budget, &input);
    EXPECT(budget.used == 0);
    EXPECT(budget.unsent == 0);
    EXPECT(shared_blocks().used_bytes() == 0);
    return 0;
}

fuzz::FrameMutator& fuzz::mutator() {
    static FrameMutator made(
        {{{":method", "POST"},
          {":scheme", "http"},
          {":path", "/inference.GRPCInferenceService/ModelInfer"},
          {":authority", "a"},
          {"te", "trailers"},
          {"content-type", "application/grpc"}}},
        {{":path",
          {"/inference.GRPCInferenceService/ModelStreamInfer", "/x.X/Gone", "/x.X/Known", "/x.X/Y",
           "", "*"}},
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
    return made;
}
