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
void take_id(std::string_view* text) {
    std::string_view rest = *text;
    if (!take(&rest, "[request id: ")) return;
    const std::size_t end = rest.rfind("] ");
    if (end != std::string_view::npos) *text = rest.substr(end + 2);
}

// Up to the closing quote: the name as it is, or in a namespace, "any::name".
bool take_quoted(std::string_view* text, std::string_view name) {
    const std::size_t end = text->find('\'');
    if (end == std::string_view::npos) return false;
    const std::string_view quoted = text->substr(0, end);
    if (quoted != name) {
        if (quoted.size() < name.size() + 2) return false;
        if (quoted.substr(quoted.size() - name.size()) != name) return false;
        if (quoted.substr(quoted.size() - name.size() - 2, 2) != "::") return false;
    }
    text->remove_prefix(end + 1);
    return true;
}

bool take_any_quoted(std::string_view* text) {
    const std::size_t end = text->find('\'');
    if (end == std::string_view::npos) return false;
    text->remove_prefix(end + 1);
    return true;
}

// "in ensemble 'it', " of the model that was asked, and of ensembles that are its steps.
bool take_ensembles(std::string_view* text, const kserve::ModelSchema& model) {
    std::string_view rest = *text;
    if (!take(&rest, "in ensemble '") || !take_quoted(&rest, model.name) || !take(&rest, ", "))
        return false;
    *text = rest;
    while (take(&rest, "in ensemble '") && take_any_quoted(&rest) && take(&rest, ", "))
        *text = rest;
    return true;
}

void take_number(std::string_view* text) {
    while (!text->empty() && text->front() >= '0' && text->front() <= '9') text->remove_prefix(1);
}

// "Request for unknown model: 'm' version 3 is not at ready state"; null: of any model.
bool denies(std::string_view text, const kserve::ModelSchema* model) {
    if (!take(&text, "Request for unknown model: '")) return false;
    if (model != nullptr ? !take_quoted(&text, model->name) : !take_any_quoted(&text)) return false;
    if (take(&text, " version ")) {
        if (model == nullptr)
            take_number(&text);
        else if (!take(&text, model->version))
            return false;
    }
    return text == " is not found" || text == " has no available versions" ||
           text == " is not at ready state";
}

bool says_stopping(std::string_view text) {
    return text == "Server not ready" || text == "Server is stopping to serve requests." ||
           text == "GRPC server is shutting down and has stopped accepting new requests." ||
           text ==
               "Server is stopping, scheduler for model has stopped accepting new inference "
               "requests";
}

bool says_queue(std::string_view text) {
    return text == "Exceeds maximum queue size" || text == "Request timeout expired" ||
           text == "timeout of the corresponding sequence has been expired";
}

}  // namespace

TritonSays triton_says(std::string_view text, const kserve::ModelSchema& model) {
    const bool of_step = take_ensembles(&text, model);
    take_id(&text);
    if (denies(text, of_step ? nullptr : &model) || says_stopping(text))
        return {TritonWord::kLeaving, of_step};
    if (says_queue(text)) return {TritonWord::kQueue, of_step};
    return {};
}

TritonSays triton_says(const Status& status, const kserve::ModelSchema& model) {
    const std::string_view text = status.message;
    if (status.code == StatusCode::kUnavailable) {
        if (text == "Cancelling all calls" || text == "Server shutdown")
            return {TritonWord::kCutOff, true};
        return triton_says(text, model);
    }
    if (status.code != StatusCode::kNotFound) return {};
    std::string_view rest = text;
    const bool of_step = take_ensembles(&rest, model);
    if (!denies(rest, of_step ? nullptr : &model)) return {};
    return {TritonWord::kLeaving, of_step};
}

}  // namespace infersched::gateway
