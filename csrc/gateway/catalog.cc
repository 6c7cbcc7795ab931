#include "gateway/catalog.h"

#include <charconv>

namespace infersched::gateway {

namespace {

bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Triton reads versions with std::stol: leading blanks and a sign are taken, trailing text is not
// looked at. False with Triton's wording when there is no number or a negative one.
bool parse_version(std::string_view text, bool cut, long* version, Status* error) {
    std::string_view digits = text;
    while (!digits.empty() && is_blank(digits.front())) digits.remove_prefix(1);
    // from_chars knows no plus sign; "+-1" is no number.
    if (digits.size() > 1 && digits[0] == '+' && digits[1] != '-') digits.remove_prefix(1);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), *version);
    if (parsed.ec == std::errc() && *version >= 0) return true;
    std::string message = parsed.ec == std::errc()
                              ? "invalid model version specified '"
                              : "failed to get model version from specified version string '";
    message.append(text);
    // A NUL in the version ends the text.
    if (!cut) {
        message += parsed.ec == std::errc() ? "' ," : "' (details: stol),";
        message += " version should be an integral value > 0";
    }
    *error = Status::error(StatusCode::kInvalidArgument, std::move(message));
    return false;
}

Status unknown_model(std::string_view name, std::string_view version) {
    std::string message = "Request for unknown model: '";
    message.append(name).append("'");
    if (!version.empty()) message.append(" version ").append(version);
    message.append(" is not found");
    return Status::error(StatusCode::kNotFound, std::move(message));
}

}  // namespace

void Catalog::replace(const std::vector<std::shared_ptr<const ModelConfig>>& models) {
    by_name_.clear();
    by_index_.clear();
    for (const std::shared_ptr<const ModelConfig>& model : models) {
        if (model->index >= by_index_.size()) by_index_.resize(model->index + 1);
        by_index_[model->index] = model;
        Versions& versions = by_name_[model->schema.name];
        versions.by_version[model->schema.version] = model.get();
        if (model->is_default_version) versions.default_version = model.get();
    }
}

const ModelConfig* Catalog::find(std::string_view name, std::string_view version, Status* error,
                                 bool version_cut) const {
    long number = 0;
    const bool versioned = !version.empty() || version_cut;
    if (versioned && !parse_version(version, version_cut, &number, error)) return nullptr;
    const auto versions = by_name_.find(name);
    if (versions == by_name_.end()) {
        *error = unknown_model(name, {});
        return nullptr;
    }
    if (version.empty() && versions->second.default_version != nullptr)
        return versions->second.default_version;
    const std::string canonical = version.empty() ? std::string() : std::to_string(number);
    const auto entry = versions->second.by_version.find(canonical);
    if (entry != versions->second.by_version.end()) return entry->second;
    *error = unknown_model(name, canonical);
    return nullptr;
}

const ModelConfig* Catalog::at(std::uint32_t index) const {
    return index < by_index_.size() ? by_index_[index].get() : nullptr;
}

}  // namespace infersched::gateway
