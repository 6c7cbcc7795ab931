#include "loadgen/generator.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace infersched::loadgen {

namespace {

http2::ClientConfig client_config(const LoadPlan& plan) {
    http2::ClientConfig config;
    config.authority = plan.authority;
    config.user_agent = "infersched-loadgen";
    return config;
}

std::uint64_t threshold_of(double share) {
    if (share <= 0) return 0;
    if (share >= 1) return ~0ull;
    return static_cast<std::uint64_t>(std::ldexp(share, 64));
}

}  // namespace

Generator::Generator(LoadPlan plan)
    : plan_(std::move(plan)),
      random_(plan_.seed),
      sample_threshold_(threshold_of(plan_.sample_share)) {}

Generator::~Generator() = default;

void Generator::add_payload(Span message, std::uint32_t rows) {
    payloads_.push_back({BufferRef::copy_of(message), rows});
}

std::uint32_t Generator::connected() {
    Connection connection;
    connection.session = std::make_unique<http2::ClientSession>(client_config(plan_));
    connections_.push_back(std::move(connection));
    const auto index = static_cast<std::uint32_t>(connections_.size() - 1);
    mark_dirty(index);
    return index;
}

void Generator::received(std::uint32_t index, Span bytes, Nanos now) {
    Connection& connection = connections_[index];
    if (!connection.session) return;
    connection.received_at = now;
    connection.session->feed(bytes, now);
    if (!connection.active) {
        connection.active = true;
        active_.push_back(index);
    }
}

void Generator::connection_lost(std::uint32_t index) {
    Connection& connection = connections_[index];
    if (!connection.session) return;
    ++totals_.connections_lost;
    connection.session->connection_lost();
    take_replies(index);
    connection.session.reset();
    connection.wanted = 0;
}

void Generator::pull(std::uint32_t index, std::size_t bytes_max, std::vector<Slice>* out) {
    Connection& connection = connections_[index];
    if (connection.session) connection.session->pull(bytes_max, out);
}

void Generator::take_dirty(std::vector<std::uint32_t>* indices) {
    indices->clear();
    indices->swap(dirty_);
    for (const std::uint32_t index : *indices) connections_[index].dirty = false;
}

bool Generator::ready() const {
    return !connections_.empty() &&
           std::all_of(connections_.begin(), connections_.end(), [](const Connection& connection) {
               return connection.session && connection.session->ready();
           });
}

void Generator::begin(Nanos now) {
    began_ = now;
    stopped_ = false;
    totals_ = Totals();
    if (plan_.in_flight > 0) {
        for (std::uint32_t i = 0; i < plan_.in_flight; ++i)
            ++connections_[i % connections_.size()].wanted;
    } else if (!plan_.arrivals.empty()) {
        arrivals_ = Arrivals::given(plan_.arrivals);
    } else {
        arrivals_ = Arrivals::poisson(plan_.rate_per_s, plan_.seed);
    }
}

void Generator::window_begin(Nanos now) {
    window_ = Window();
    window_.began = now;
    in_window_ = true;
}

void Generator::window_end(Nanos now) {
    window_.ended = now;
    in_window_ = false;
}

void Generator::stop() { stopped_ = true; }

void Generator::turn(Nanos now) {
    for (std::size_t i = 0; i < active_.size(); ++i) {
        const std::uint32_t index = active_[i];
        connections_[index].active = false;
        if (!connections_[index].session) continue;
        take_replies(index);
        mark_dirty(index);
    }
    active_.clear();
    if (began_ == kNever || stopped_) return;
    start_due(now);
    if (plan_.in_flight > 0)
        for (std::uint32_t index = 0; index < connections_.size(); ++index)
            start_wanted(index, now);
}

Nanos Generator::next_wake() const {
    if (began_ == kNever || stopped_ || arrivals_.peek() == kNever) return kNever;
    return add_saturating(began_, arrivals_.peek());
}

// A call that finds no connection ready stays due: it is charged for the wait.
void Generator::start_due(Nanos now) {
    while (arrivals_.peek() != kNever) {
        const Nanos due = add_saturating(began_, arrivals_.peek());
        if (due > now) return;
        bool started = false;
        for (std::size_t tried = 0; tried < connections_.size() && !started; ++tried) {
            const std::uint32_t index = next_connection_;
            next_connection_ = (next_connection_ + 1) % connections_.size();
            started = start_call(index, due, now);
        }
        if (!started) return;
        arrivals_.advance();
        if (stopped_) return;
    }
}

void Generator::start_wanted(std::uint32_t index, Nanos now) {
    Connection& connection = connections_[index];
    while (connection.wanted > 0 && !stopped_) {
        if (!start_call(index, now, now)) return;
        --connection.wanted;
    }
}

bool Generator::start_call(std::uint32_t index, Nanos due, Nanos now) {
    Connection& connection = connections_[index];
    if (!connection.session || !connection.session->ready()) return false;
    const Payload& payload = payloads_[next_payload_];
    Pieces message;
    message.append_reference(payload.message, payload.message.span());
    const http2::StreamId stream =
        connection.session->call(plan_.path, plan_.timeout_ns, {}, std::move(message));
    if (stream == 0) return false;
    if (free_call_ == 0) {
        calls_.push_back({});
        free_call_ = static_cast<std::uint32_t>(calls_.size());
    }
    const std::uint32_t call = free_call_;
    Call& record = calls_[call - 1];
    free_call_ = record.next_free;
    record = {due, next_payload_, 0};
    connection.calls.insert(stream, call);
    ++in_flight_;
    ++totals_.sent;
    totals_.sent_rows += payload.rows;
    if (window_.began != 0 && due >= window_.began && in_window_) {
        ++window_.due;
        window_.start_delay.add(now - due);
    }
    next_payload_ = next_payload_ + 1 == payloads_.size() ? 0 : next_payload_ + 1;
    mark_dirty(index);
    if (totals_.sent >= plan_.requests_max) stopped_ = true;
    return true;
}

void Generator::take_replies(std::uint32_t index) {
    Connection& connection = connections_[index];
    http2::Event event;
    while (connection.session->next_event(&event)) {
        if (event.kind == http2::EventKind::kReply) {
            const auto call = static_cast<std::uint32_t>(connection.calls.take(event.stream));
            if (call != 0) {
                finish_call(event, call, connection.received_at);
                if (plan_.in_flight > 0) ++connection.wanted;
            }
        }
        event = http2::Event();
    }
}

void Generator::finish_call(const http2::Event& event, std::uint32_t call, Nanos received_at) {
    Call& record = calls_[call - 1];
    const Call ended = record;
    record.next_free = free_call_;
    free_call_ = call;
    --in_flight_;
    ++totals_.answered;
    ++totals_.statuses[std::min<std::size_t>(static_cast<std::size_t>(event.status.code),
                                             kStatusCodes - 1)];
    const bool measured = window_.began != 0 && ended.due >= window_.began &&
                          (in_window_ || ended.due < window_.ended);
    if (!event.status.ok()) {
        if (first_error_.empty()) first_error_ = event.status.message;
        window_.failed += measured;
        return;
    }
    const std::uint32_t rows = payloads_[ended.payload].rows;
    ++totals_.ok;
    totals_.ok_rows += rows;
    const Span reply = event.message.span();
    totals_.ok_empty += reply.empty();
    if (in_window_) {
        ++window_.ok;
        window_.ok_rows += rows;
    }
    if (measured) {
        const Nanos latency_ns = received_at - ended.due;
        window_.latency.add(latency_ns);
        window_.good += latency_ns <= plan_.objective_ns;
    }
    if (sample_threshold_ != 0 && random_.next() <= sample_threshold_)
        keep_sample(ended.payload, reply);
}

void Generator::keep_sample(std::uint32_t payload, Span reply) {
    if (sample_bytes_ + reply.size > plan_.sample_bytes_max) return;
    sample_bytes_ += reply.size;
    samples_.push_back({payload, BufferRef::copy_of(reply)});
}

void Generator::mark_dirty(std::uint32_t index) {
    Connection& connection = connections_[index];
    if (connection.dirty || !connection.session) return;
    connection.dirty = true;
    dirty_.push_back(index);
}

}  // namespace infersched::loadgen
