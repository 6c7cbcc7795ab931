// What must be true of the engine whatever happens around it, seen from outside.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "simulation/engine_settings.h"

namespace infersched::simulation {

class Truths {
  public:
    explicit Truths(const std::vector<ModelSetup>& models) : models_(models) {}

    void submitted(const engine::Request& request, const engine::Admission& admission);
    void cancelled(engine::RequestHandle handle);
    void backend(std::uint32_t backend, bool available);
    // Whether the engine may send batches of the model there.
    void placed(std::uint32_t model, std::uint32_t backend, bool placed);
    // After a step at `now`, with its actions.
    void stepped(const engine::Engine& engine, Nanos now);
    // The batch is back, or lost, or given up.
    void returned(engine::BatchHandle batch);
    // When nothing can come any more.
    void ended(const engine::Engine& engine);
    void require(bool holds, const char* truth) {
        if (!holds && broken_.empty()) broken_ = truth;
    }
    // The first that did not hold; empty: all did.
    const std::string& broken() const { return broken_; }

  private:
    struct Open {
        engine::RequestHandle handle = 0;
        Nanos deadline = kNever;
        std::uint32_t model = 0;
        std::uint32_t rows = 0;
        bool cancelled = false;
    };
    void answered(const engine::Action& action);
    void dispatched(const engine::Engine& engine, const engine::Action& action, Nanos now);
    bool on(const std::set<std::uint64_t>& off, std::uint32_t model, std::uint32_t backend) const {
        return off.count(std::uint64_t{model} << 32 | backend) == 0;
    }

    const std::vector<ModelSetup>& models_;
    std::unordered_map<std::uint64_t, Open> open_;         // by Request::user
    std::set<std::pair<Nanos, std::uint64_t>> deadlines_;  // of those
    std::set<std::uint64_t> leaving_;                      // users whose cancel was told
    std::unordered_map<engine::RequestHandle, std::uint64_t> users_;
    std::set<engine::BatchHandle> out_;
    std::set<std::uint32_t> unavailable_;
    std::set<std::uint64_t> unplaced_;
    std::string broken_;
};

}  // namespace infersched::simulation
