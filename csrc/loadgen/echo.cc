#include "loadgen/echo.h"

#include <utility>

#include "kserve/wire_reader.h"
#include "kserve/wire_writer.h"

namespace infersched::loadgen {

namespace {

using kserve::kLengthDelimited;
using kserve::wire_tag;
using kserve::WireReader;

// Fields 1 to 3 (names and id) and 5 (tensors) have the same numbers in request and response.
constexpr std::uint32_t kModelName = wire_tag(1, kLengthDelimited);
constexpr std::uint32_t kModelVersion = wire_tag(2, kLengthDelimited);
constexpr std::uint32_t kId = wire_tag(3, kLengthDelimited);
constexpr std::uint32_t kTensor = wire_tag(5, kLengthDelimited);
constexpr std::uint32_t kRawInput = wire_tag(7, kLengthDelimited);
constexpr std::uint32_t kRawOutput = wire_tag(6, kLengthDelimited);
constexpr std::uint32_t kShapePacked = wire_tag(3, kLengthDelimited);
constexpr std::uint32_t kShapeUnpacked = wire_tag(3, kserve::kVarint);

constexpr std::uint16_t kServerLiveRoute = 1;

constexpr std::size_t kFieldHeadBytesMax = 11;

std::uint8_t* put_head(std::uint8_t* at, std::uint32_t tag, std::size_t size) {
    *at++ = static_cast<std::uint8_t>(tag);
    return kserve::put_varint(at, size);
}

void append_field(Pieces* message, std::uint32_t tag, const BufferRef& owner, Span bytes) {
    std::uint8_t* head = message->append_space(kFieldHeadBytesMax);
    const std::size_t head_bytes = static_cast<std::size_t>(put_head(head, tag, bytes.size) - head);
    message->shrink_space(kFieldHeadBytesMax - head_bytes);
    if (!bytes.empty()) message->append_reference(owner, bytes);
}

std::uint64_t first_dimension(Span tensor) {
    WireReader reader(tensor);
    std::uint32_t tag = 0;
    std::uint64_t rows = 0;
    while (!reader.done() && reader.read_tag(&tag)) {
        if (tag == kShapeUnpacked) return reader.read_varint(&rows) ? rows : 0;
        if (tag == kShapePacked) {
            Span shape;
            if (!reader.read_bytes(&shape)) return 0;
            WireReader dimensions(shape);
            return dimensions.read_varint(&rows) ? rows : 0;
        }
        if (!reader.skip(tag, 1)) return 0;
    }
    return 0;
}

}  // namespace

bool echo_inputs(const BufferRef& request, Pieces* response, std::uint64_t* rows) {
    WireReader reader(request.span());
    std::uint32_t tag = 0;
    bool first = true;
    while (!reader.done()) {
        if (!reader.read_tag(&tag)) return false;
        const bool echoed =
            tag == kModelName || tag == kModelVersion || tag == kId || tag == kTensor;
        if (!echoed && tag != kRawInput) {
            if (!reader.skip(tag, 1)) return false;
            continue;
        }
        Span bytes;
        if (!reader.read_bytes(&bytes)) return false;
        if (tag == kTensor && first) {
            *rows = first_dimension(bytes);
            first = false;
        }
        append_field(response, tag == kRawInput ? kRawOutput : tag, request, bytes);
    }
    return true;
}

EchoServer::EchoServer(std::string path) {
    config_.routes = {{std::move(path), http2::RouteKind::kUnary, {}},
                      {"/inference.GRPCInferenceService/ServerLive", http2::RouteKind::kUnary, {}}};
    config_.streams_max = 1u << 20;
    config_.connection_window_bytes = 64u << 20;
    config_.stream_window_bytes = 4u << 20;
    config_.frame_bytes_max = 4u << 20;
}

std::uint32_t EchoServer::connected() {
    sessions_.push_back(std::make_unique<http2::ServerSession>(&config_, &budget_));
    return static_cast<std::uint32_t>(sessions_.size() - 1);
}

bool EchoServer::received(std::uint32_t connection, Span bytes, Nanos now) {
    return !sessions_[connection] || sessions_[connection]->feed(bytes, now);
}

void EchoServer::connection_lost(std::uint32_t connection) { sessions_[connection].reset(); }

void EchoServer::answer_request(http2::ServerSession* session, const http2::Event& event) {
    Pieces response;
    std::uint64_t rows = 0;
    if (event.route == kServerLiveRoute) {
        response.append_copy(span_of("\x08\x01"));  // live: true
        session->answer(event.stream, std::move(response));
    } else if (event.message && echo_inputs(event.message, &response, &rows)) {
        ++executions_;
        rows_ += rows;
        session->answer(event.stream, std::move(response));
    } else {
        session->refuse(event.stream,
                        Status::error(StatusCode::kInternal, "Unable to parse request"));
    }
    session->release(event.bytes, event.window_bytes);
}

void EchoServer::answer(std::uint32_t connection) {
    http2::ServerSession* session = sessions_[connection].get();
    if (session == nullptr) return;
    http2::Event event;
    while (session->next_event(&event)) {
        if (event.kind == http2::EventKind::kRequest) {
            answer_request(session, event);
        } else if (event.kind == http2::EventKind::kForwardHeaders) {
            session->reset(event.stream, 0x7);  // REFUSED_STREAM: nothing else is served
        }
        event = http2::Event();
    }
}

void EchoServer::pull(std::uint32_t connection, std::size_t bytes_max, std::vector<Slice>* out) {
    if (sessions_[connection]) sessions_[connection]->pull(bytes_max, out);
}

}  // namespace infersched::loadgen
