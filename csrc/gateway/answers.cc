// The engine's answers on their way out: replies put together, decisions turned into statuses.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

void Gateway::State::answer(const engine::Action& action, Nanos now) {
    RequestRecord* request = requests.find(action.user);
    if (request == nullptr) return;
    Connection* connection = connections.find(request->connection);
    if (connection == nullptr || connection->lost ||
        action.outcome == engine::Outcome::kCancelled) {
        finish_request(action.user, request, connection, now);
        return;
    }
    if (request->client_stream != 0) {
        answer_in_stream(action, request, connection, now);
        finish_request(action.user, request, connection, now);
        return;
    }
    const http2::AnswerMetadata* metadata = request->answer_metadata.get();
    Pieces message;
    Status status;
    if (action.outcome != engine::Outcome::kCompleted)
        status = answer_status(action, *request, model_name(request->model));
    if (status.ok() && put_reply_together(request, &message, &status))
        connection->server->answer(request->stream, std::move(message), metadata);
    else
        connection->server->refuse(request->stream, status, metadata);
    finish_request(action.user, request, connection, now);
}

// The reply to one request, of all its parts. False: they do not fit together.
bool Gateway::State::put_reply_together(RequestRecord* request, Pieces* message, Status* status) {
    auto& further = request->further_parts;
    reply_scratch.clear();
    reply_scratch.push_back(
        {request->part.reply.get(), request->part.row_begin, request->part.rows});
    if (!further.empty()) {
        further.push_back(request->part);
        std::sort(further.begin(), further.end(), [](const ReplyPart& a, const ReplyPart& b) {
            return a.request_row_begin < b.request_row_begin;
        });
        reply_scratch.clear();
        for (const ReplyPart& part : further)
            reply_scratch.push_back({part.reply.get(), part.row_begin, part.rows});
    }
    std::string error;
    if (kserve::write_reply(request->prepared, reply_scratch.data(), reply_scratch.size(),
                            request->part.whole, message, &error))
        return true;
    *status = Status::error(StatusCode::kInternal,
                            "the parts of the reply do not fit together: " + error);
    return false;
}

std::string_view Gateway::State::model_name(std::uint32_t model) const {
    const ModelConfig* config = catalog.at(model);
    return config == nullptr ? std::string_view() : std::string_view(config->schema.name);
}

void Gateway::State::finish_request(RequestId id, RequestRecord* request, Connection* connection,
                                    Nanos now) {
    if (request->client_stream != 0) forget_in_stream(request, now);
    if (connection != nullptr) {
        if (request->client_stream == 0) connection->requests.take(request->stream);
        connection->server->release(request->bytes, request->window_bytes);
        connections.mark_dirty(request->connection, connection);
    }
    budget.used -= request->overhead;
    requests.erase(id);
}

}  // namespace infersched::gateway
