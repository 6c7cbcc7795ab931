#include "gateway/triton_texts.h"

namespace infersched::gateway {
namespace {

// Drops `part` from the front of the text, if it is there.
bool take(std::string_view* text, std::string_view part) {
    if (text->substr(0, part.size()) != part) return false;
    text->remove_prefix(part.size());
    return true;
}

// "[request id: it] ", whatever the id: it is the client's or ours.
std::string_view without_id(std::string_view text) {
    std::string_view rest = text;
    if (!take(&rest, "[request id: ")) return text;
    const std::size_t end = rest.rfind("] ");
    return end == std::string_view::npos ? text : rest.substr(end + 2);
}

// "Request for unknown model: 'm' version 3 is not at ready state"
bool denies(std::string_view text, const kserve::ModelSchema& model) {
    if (!take(&text, "Request for unknown model: '") || !take(&text, model.name) ||
        !take(&text, "'"))
        return false;
    if (take(&text, " version ") && !take(&text, model.version)) return false;
    return text == " is not found" || text == " has no available versions" ||
           text == " is not at ready state";
}

bool says_stopping(std::string_view text) {
    return text == "Server not ready" || text == "Server is stopping to serve requests." ||
           text == "GRPC server is shutting down and has stopped accepting new requests." ||
           without_id(text) ==
               "Server is stopping, scheduler for model has stopped accepting new inference "
               "requests";
}

}  // namespace

bool says_leaving(std::string_view text, const kserve::ModelSchema& model) {
    return denies(text, model) || says_stopping(text);
}

bool says_leaving(const Status& status, const kserve::ModelSchema& model) {
    switch (status.code) {
        case StatusCode::kNotFound:
            return denies(status.message, model);
        case StatusCode::kUnavailable:
            return says_leaving(status.message, model);
        default:
            return false;
    }
}

bool says_queue_full(const Status& status) {
    return status.code == StatusCode::kUnavailable &&
           without_id(status.message) == "Exceeds maximum queue size";
}

bool says_cut_off(const Status& status) {
    return status.code == StatusCode::kUnavailable &&
           (status.message == "Cancelling all calls" || status.message == "Server shutdown");
}

}  // namespace infersched::gateway
