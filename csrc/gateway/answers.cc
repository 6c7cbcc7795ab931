// The engine's answers on their way out: replies put together, decisions turned into statuses.
#include <algorithm>

#include "gateway/state.h"

namespace infersched::gateway {

void Gateway::State::answer(const engine::Action& action, Nanos) {
    RequestRecord* request = requests.find(action.user);
    if (request == nullptr) return;
    Connection* connection = connections.find(request->connection);
    if (connection == nullptr || connection->lost ||
        action.outcome == engine::Outcome::kCancelled) {
        finish_request(action.user, request, connection);
        return;
    }
    if (action.outcome == engine::Outcome::kCompleted) {
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
        Pieces message;
        std::string error;
        if (kserve::write_reply(request->prepared, reply_scratch.data(), reply_scratch.size(),
                                request->part.whole, &message, &error)) {
            connection->server->answer(request->stream, std::move(message));
        } else {
            connection->server->refuse(
                request->stream,
                Status::error(StatusCode::kInternal,
                              "the parts of the reply do not fit together: " + error));
        }
    } else {
        connection->server->refuse(request->stream, answer_status(action, *request));
    }
    finish_request(action.user, request, connection);
}

void Gateway::State::finish_request(RequestId id, RequestRecord* request, Connection* connection) {
    if (connection != nullptr) {
        connection->requests.take(request->stream);
        connection->server->release(request->bytes);
        connections.mark_dirty(request->connection, connection);
    }
    budget.used -= request->overhead;
    requests.erase(id);
}

}  // namespace infersched::gateway
