// Requests for models that are not loaded: they wait, are told, and go on or are answered.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

namespace {

ParkedCall parked_call(const Arriving& arriving, std::uint64_t bytes, Nanos deadline) {
    ParkedCall call;
    call.model = arriving.awaited;
    call.connection = arriving.connection;
    call.client_stream = arriving.client_stream;
    call.arrival = arriving.event->arrival;
    call.deadline = deadline;
    call.late_by = arriving.late_by(deadline);
    call.overhead = sizeof(ParkedCall);
    call.bytes = bytes + call.overhead;
    return call;
}

// Of a load that is under way or asked for now.
Nanos load_ns_left(const LoadingModel& model, Nanos now) {
    return model.missing() ? std::max<Nanos>(model.expected_at(now) - now, 0) : 0;
}

kserve::ModelName names_of(const http2::Event& event) {
    kserve::ModelName names;
    return kserve::peek_model(event.message.span(), &names) ? names : kserve::ModelName();
}

}  // namespace

void Gateway::State::apply_loadable(const WantedState& next, Nanos now) {
    parking.apply(next.loadable, next.models, available_backends());
    parking.each_model([&](LoadingModel& model) {
        if (model.waiting > 0 && model.missing() && !model.due) tell_wanted(&model, now);
    });
}

std::vector<bool> Gateway::State::available_backends() const {
    std::vector<bool> available;
    for (const Backend& backend : backends) available.push_back(backend.available);
    return available;
}

// Told for each wait, not for each request: who asks again while nobody waits is told of as well.
void Gateway::State::tell_wanted(LoadingModel* model, Nanos now) {
    if (model->told && now < add_saturating(model->told_at, kWantedAgainNs)) return;
    model->told = true;
    model->told_at = now;
    notices.push_back(
        {Notice::Kind::kModelWanted, 0, 0, false, model->waiting, model->wanted.name});
}

// Of the message that was just decoded.
Nanos Gateway::State::parked_deadline(const Arriving& arriving) const {
    return arriving.deadline_within(Arriving::budget_ns(reader.decoded_timeout_us()));
}

// With what waits behind it on its stream.
std::uint64_t Gateway::State::bytes_to_park(const Arriving& arriving) {
    const ClientStream* stream = client_streams.find(arriving.client_stream);
    return arriving.event->bytes + (stream == nullptr ? 0 : stream->held.bytes());
}

// OK: the request may wait for `arriving.awaited`.
Status Gateway::State::ask_to_park(const Arriving& arriving, Nanos now) {
    LoadingModel& model = *arriving.awaited;
    const std::string& name = model.wanted.name;
    const Nanos deadline = parked_deadline(arriving);
    const Nanos load_ns = load_ns_left(model, now);
    const auto refused = [&](Status&& status) {
        ++page->loading_refused_total;
        return std::move(status);
    };
    const auto refused_for = [&](engine::Reason reason, Nanos retry_after_ns) {
        engine::Admission admission;
        admission.reason = reason;
        admission.retry_after_ns = retry_after_ns;
        admission.predicted_ns = load_ns;
        return refused(
            refusal_status(admission, arriving.id, name, {}, arriving.late_by(deadline)));
    };
    if (draining) return refused_for(engine::Reason::kDraining, 0);
    if (model.missing() && !model.wanted.error.empty())
        return refused(load_failed_status(arriving.id, model.wanted, now));
    if (deadline <= now) return refused_for(engine::Reason::kDeadlineInfeasible, 0);
    if (load_ns > deadline - now) {
        // Who tries again finds it loaded.
        if (model.waiting == 0) tell_wanted(&model, now);
        return refused(loading_status(arriving.id, name, load_ns, deadline - now));
    }
    if (model.waiting >= kParkedPerModelMax)
        return refused_for(engine::Reason::kQueueFull, load_ns);
    if (parking.bytes() + bytes_to_park(arriving) > budget.max / kParkedBytesShare ||
        budget.room() < sizeof(ParkedCall))
        return refused_for(engine::Reason::kHostMemory, load_ns);
    return Status();
}

void Gateway::State::park_request(const Arriving& arriving, Connection* connection,
                                  http2::Event* event, Nanos now) {
    ParkedCall call = parked_call(arriving, event->bytes, parked_deadline(arriving));
    connection->server->set_aside(std::exchange(event->window_bytes, 0));
    call.event = std::move(*event);
    connections.mark_dirty(call.connection, connection);
    const http2::StreamId stream = call.event.stream;
    connection->parked.insert(stream, park(std::move(call), now));
}

// The message stays the first that its stream holds; the later ones wait behind it.
void Gateway::State::park_message(const Arriving& arriving, ClientStream* stream,
                                  Connection* connection, http2::Event* event, Nanos now) {
    const Nanos deadline = parked_deadline(arriving);
    // At its own deadline the stream ends as a whole.
    ParkedCall call = parked_call(arriving, bytes_to_park(arriving),
                                  deadline < stream->deadline ? deadline : kNever);
    stream->held.push_front(std::move(*event), connection->server.get());
    connection->server->hold(stream->stream, true);
    connections.mark_dirty(stream->connection, connection);
    stream->parked = park(std::move(call), now);
}

// What is too much costs the first message of the stream its place: the next one is looked at.
void Gateway::State::park_behind(ClientStream* stream, Connection* connection, http2::Event* event,
                                 Nanos now) {
    parking.add_bytes(stream->parked, event->bytes);
    stream->held.push_back(std::move(*event), connection->server.get());
    if (parking.bytes() <= budget.max / kParkedBytesShare) return;
    const LoadingModel& model = *parking.find(stream->parked)->model;
    const Status status = refusal_status({0, engine::Reason::kHostMemory, load_ns_left(model, now)},
                                         names_of(stream->held.front()).id, model.wanted.name);
    refuse_parked(stream->parked, status, &page->loading_failed_total, now);
}

ParkedId Gateway::State::park(ParkedCall&& call, Nanos now) {
    LoadingModel* model = call.model;
    budget.used += call.overhead;
    const ParkedId id = parking.park(std::move(call));
    ++page->loading_parked_total;
    page->loading_waiting = parking.size();
    if (model->waiting == 1) tell_wanted(model, now);
    return id;
}

// It waits no more; `counter` says why.
ParkedCall Gateway::State::take_parked(ParkedId id, std::uint64_t* counter) {
    ParkedCall call = parking.take(id);
    budget.used -= call.overhead;
    ++*counter;
    page->loading_waiting = parking.size();
    if (ClientStream* stream = client_streams.find(call.client_stream)) {
        stream->parked = 0;
        call.event = stream->held.take_front();
    } else if (call.client_stream == 0) {
        if (Connection* connection = connections.find(call.connection))
            connection->parked.take(call.event.stream);
    }
    return call;  // a stream that ends lets go what it holds
}

// Nobody waits for the answer.
void Gateway::State::forget_parked(ParkedId id) {
    const ParkedCall call = take_parked(id, &page->loading_cancelled_total);
    Connection* connection = connections.find(call.connection);
    if (connection == nullptr) return;
    connection->server->release(call.event.bytes, call.event.window_bytes);
    connections.mark_dirty(call.connection, connection);
}

// Those that have waited enough, not too many at once. Returns whether some are left.
bool Gateway::State::settle_parked(Nanos now) {
    for (std::uint32_t settled = 0; settled < kRequestsPerTurnMax; ++settled) {
        if (const ParkedId late = parking.expired(now)) {
            const ParkedCall& call = *parking.find(late);
            const Status status = expired_in_queue_status(now - call.arrival, call.late_by);
            refuse_parked(late, status, &page->loading_expired_total, now);
        } else if (const ParkedId id = parking.due()) {
            settle_due(id, now);
        } else {
            return false;
        }
    }
    return parking.has_work(now);
}

void Gateway::State::settle_due(ParkedId id, Nanos now) {
    const ParkedCall& call = *parking.find(id);
    const LoadingModel& model = *call.model;
    if (!draining && !model.missing()) {
        admit_parked(id, now);
        return;
    }
    const ClientStream* stream = client_streams.find(call.client_stream);
    const std::string_view request_id =
        names_of(stream == nullptr ? call.event : stream->held.front()).id;
    const Status status =
        draining ? refusal_status({0, engine::Reason::kDraining, 0}, request_id, model.wanted.name)
                 : load_failed_status(request_id, model.wanted, now);
    refuse_parked(id, status, &page->loading_failed_total, now);
}

void Gateway::State::admit_parked(ParkedId id, Nanos now) {
    ParkedCall call = take_parked(id, &page->loading_admitted_total);
    Connection* connection = connections.find(call.connection);
    if (connection == nullptr) return;
    if (ClientStream* stream = client_streams.find(call.client_stream)) {
        start_message(call.client_stream, stream, connection, &call.event, now, true);
        resume_stream(call.client_stream, now);
    } else {
        take_request(call.connection, connection, &call.event, now, true);
    }
}

void Gateway::State::refuse_parked(ParkedId id, const Status& status, std::uint64_t* counter,
                                   Nanos now) {
    const ParkedCall call = take_parked(id, counter);
    Connection* connection = connections.find(call.connection);
    if (connection == nullptr) return;
    if (ClientStream* stream = client_streams.find(call.client_stream)) {
        Arriving arriving;
        arriving.whole_id = names_of(call.event).whole_id;
        refuse_message(stream, connection, call.event, arriving, status);
        resume_stream(call.client_stream, now);
        return;
    }
    connection->server->refuse(call.event.stream, status);
    connection->server->release(call.event.bytes, call.event.window_bytes);
    connections.mark_dirty(call.connection, connection);
}

// Its first message has gone: the later ones follow.
void Gateway::State::resume_stream(ClientStreamId id, Nanos now) {
    ClientStream* stream = client_streams.find(id);
    Connection* connection = stream == nullptr ? nullptr : connections.find(stream->connection);
    if (connection == nullptr) return;
    if (stream->held.empty()) {
        connection->server->hold(stream->stream, false);
    } else {
        stall(id, stream, connection);
        connections.mark_active(stream->connection, connection);
    }
    finish_if_done(id, stream, now);
}

}  // namespace infersched::gateway
