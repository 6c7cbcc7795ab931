#include "http2/stream.h"

#include <utility>

namespace infersched::http2 {

namespace {

constexpr std::size_t kSpareStreamsMax = 1024;
constexpr std::size_t kKeptRecords = 128;
constexpr std::size_t kKeptReady = 16;

// Spare streams of this thread, for all its sessions: an idle connection holds none. Never
// destroyed: sessions of a thread may outlive its thread-local objects.
std::vector<Stream*>& spare_streams() {
    thread_local auto* spare = new std::vector<Stream*>();
    return *spare;
}

}  // namespace

void Stream::recycle() {
    id = 0;
    kind = StreamKind::kUnary;
    body_end = BodyEnd::kOpen;
    route = 0;
    clear_flags();
    records = 0;
    arrival = 0;
    deadline = kNever;
    in.clear();
    in.set_encoding(Compression::kNone);
    in.set_shared(nullptr);
    out_encoding = Compression::kNone;
    inflated_bytes = unpaid_bytes = metadata_bytes = 0;
    charged_bytes = uncredited_bytes = unclaimed_bytes = sent_bytes = 0;
    clear_ready();
    header_bytes = 0;
    out.clear();
    headers.clear();
    watched.clear();
    trailers.clear();
    if (!refusal.ok()) refusal = Status();
    http_status = 200;
    if (!status.ok()) status = Status();
    status_seen = reply_grpc = false;
    answer.headers.clear();
    answer.trailers.clear();
    previous = next = nullptr;
}

ReadyMessage Stream::take_ready() {
    ReadyMessage taken = std::move(ready[ready_head++]);
    if (!has_ready()) clear_ready();
    return taken;
}

void Stream::clear_ready() {
    ready_head = 0;
    ready.clear();
    if (ready.capacity() > kKeptReady) std::vector<ReadyMessage>().swap(ready);
}

StreamList::~StreamList() {
    while (first_ != nullptr) remove(first_);
}

Stream* StreamList::open(StreamId id) {
    std::vector<Stream*>& spare = spare_streams();
    Stream* stream = nullptr;
    if (spare.empty()) {
        stream = new Stream();
    } else {
        stream = spare.back();
        spare.pop_back();
    }
    stream->id = id;
    stream->next = first_;
    if (first_ != nullptr) first_->previous = stream;
    first_ = stream;
    ++size_;
    return stream;
}

void StreamList::remove(Stream* stream) {
    (stream->previous != nullptr ? stream->previous->next : first_) = stream->next;
    if (stream->next != nullptr) stream->next->previous = stream->previous;
    --size_;
    std::vector<Stream*>& spare = spare_streams();
    if (spare.size() >= kSpareStreamsMax) {
        delete stream;
        return;
    }
    stream->recycle();
    spare.push_back(stream);
}

void EventQueue::push(Stream* stream, EventKind kind) {
    ++stream->records;
    records_.push_back({stream, kind, nullptr});
}

Event* EventQueue::push(EventKind kind, StreamId stream) {
    auto event = std::make_unique<Event>();
    event->kind = kind;
    event->stream = stream;
    records_.push_back({nullptr, kind, std::move(event)});
    return records_.back().event.get();
}

EventQueue::Record EventQueue::pop() {
    Record record = std::move(records_[head_++]);
    if (record.stream != nullptr) --record.stream->records;
    if (empty()) clear();
    return record;
}

void EventQueue::clear() {
    head_ = 0;
    records_.clear();
    if (records_.capacity() > kKeptRecords) std::vector<Record>().swap(records_);
}

void reset_event(Event* event, EventKind kind, StreamId stream) {
    event->kind = kind;
    event->stream = stream;
    event->route = 0;
    event->nothing_ran = event->answered = event->lost = event->reset = false;
    event->end_stream = false;
    event->arrival = 0;
    event->deadline = kNever;
    event->bytes = event->window_bytes = 0;
    event->message = BufferRef();
    event->metadata.clear();
    event->headers.clear();
    if (!event->status.ok()) event->status = Status();
    event->answer.headers.clear();
    event->answer.trailers.clear();
}

}  // namespace infersched::http2
