// What the engine keeps. The steps that change it are those of core.h.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <unordered_map>
#include <vector>

#include "engine/admission/lookahead.h"
#include "engine/engine.h"
#include "engine/execution/executors.h"
#include "engine/execution/shared_places.h"
#include "engine/memory/ledger.h"
#include "engine/model_state.h"
#include "engine/queues/queue.h"
#include "engine/records.h"
#include "engine/timer_heap.h"

namespace infersched::engine {

class CoreState {
  protected:
    explicit CoreState(CountersPage* page) : page_(page) {}

    // Those of models beyond the page are kept here, seen by nobody.
    ModelCounters& counters(std::uint32_t model) {
        if (model < kCountersModelsMax) return page_->models[model];
        return unpublished_[model - kCountersModelsMax];
    }
    const ModelCounters& counters(std::uint32_t model) const {
        return const_cast<CoreState*>(this)->counters(model);
    }

    CountersPage* page_;
    MemoryLedger memory_;
    SharedPlaces places_;
    bool places_moved_ = false;  // they are to be arranged anew, for all models together
    std::deque<ModelCounters> unpublished_;  // of models kCountersModelsMax, ...
    std::deque<ModelState> models_;
    std::vector<bool> backends_available_;
    std::vector<double> tenant_weights_ = {1.0};  // by tenant; 0 is everybody else
    std::vector<Executor> executors_;
    std::unordered_map<std::uint32_t, std::uint32_t> executor_by_group_;  // looked up, never walked
    // Made anew from the placements whenever those change.
    std::vector<Domain> domains_;
    std::deque<Component> components_;
    bool rearrange_ = false;
    std::vector<std::uint32_t> dirty_components_;
    TimerHeap ticks_;  // by component: its next control tick
    Requests requests_;
    Batches batches_;
    Sequences sequences_;
    std::vector<SequenceMember> sequential_;  // by request slot
    QueueNodes nodes_;
    TimerHeap deadlines_;  // by request slot; of those in a group's order only Group::timed
    TimerHeap moments_;    // by model: when it must be looked at again
    TimerHeap idle_;       // by sequence slot: when it is forgotten
    TimerHeap given_up_;   // by batch slot: when its slot is free again
    TimerHeap holds_;      // by batch slot: how long devices are held free for it
    std::vector<std::uint32_t> dirty_;
    std::uint64_t sequence_ = 0;
    std::uint64_t retry_sequence_ = 0;
    Lookahead lookahead_;                                    // of one question; kept for its memory
    Nanos wake_ = kNever;                                    // as last told to the caller
    Nanos stepped_at_ = std::numeric_limits<Nanos>::min();   // the last step
    Nanos rests_until_ = std::numeric_limits<Nanos>::min();  // of all placements, at most
};

}  // namespace infersched::engine
