// The models of the last Apply, found by the names that requests use.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "gateway/config.h"

namespace infersched::gateway {

class Catalog {
  public:
    // Replaces all models; what find and at gave before is no longer valid.
    void replace(const std::vector<std::shared_ptr<const ModelConfig>>& models);

    // The entry a request for (name, version) is meant for; otherwise nullptr and `error` in
    // Triton's words.
    const ModelConfig* find(std::string_view name, std::string_view version, Status* error,
                            bool version_cut = false) const;
    const ModelConfig* at(std::uint32_t index) const;
    bool empty() const { return by_name_.empty(); }

  private:
    struct Versions {
        const ModelConfig* default_version = nullptr;
        std::map<std::string, const ModelConfig*, std::less<>> by_version;
    };

    std::map<std::string, Versions, std::less<>> by_name_;
    std::vector<std::shared_ptr<const ModelConfig>> by_index_;
};

}  // namespace infersched::gateway
