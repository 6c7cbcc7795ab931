// A closed loop around the engine that costs little itself: what a decision takes.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "simulation/driven_engine.h"
#include "simulation/random.h"

namespace infersched::simulation {

struct DecisionSettings {
    std::uint32_t models = 1;
    std::uint64_t queue_length = 1000;  // of all models together, evenly
    std::uint32_t rows_max = 64;
    bool load_aware = true;
    std::uint64_t seed = 1;
};

// One executor that all models share and that takes a millisecond for any batch. Every answered
// request is followed by one of the same model; deadlines are random and far away.
class DecisionLoad {
  public:
    explicit DecisionLoad(const DecisionSettings& settings);
    // Fills the queue; answers the first requests, until their latency is known.
    void fill();
    // Until that many more requests have been completed. False: one was refused or lost, or
    // nothing is out.
    bool run(std::uint64_t requests);
    std::uint64_t completed() const { return completed_; }

  private:
    bool turn();
    void submit(std::uint32_t model);

    DecisionSettings settings_;
    DrivenEngine engine_{nullptr};
    Random random_;
    std::deque<engine::BatchHandle> out_;
    std::vector<std::uint32_t> again_;  // models of answered requests
    Nanos now_ = kSecond;
    Nanos wake_ = kNever;
    std::uint64_t completed_ = 0;
    bool sound_ = true;
};

}  // namespace infersched::simulation
