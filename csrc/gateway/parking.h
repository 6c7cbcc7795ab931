// Calls for models that can be loaded and are not: they wait here, before the engine, by model in
// the order of their arrival.
//
//     admit ─ not loaded ─▶ park ─ an Apply has the model ready ─▶ admission, some of them a turn
//                            └──── deadline, cancel, failed load, drain ────▶ answered
//
// Known here is who waits for what and who is next; what happens to them is in loading.cc.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/slot_map.h"
#include "gateway/config.h"
#include "gateway/requests.h"
#include "http2/session.h"

namespace infersched::gateway {

using ParkedId = std::uint64_t;

// Of each model: its own limit is not known before it is loaded, this is the usual one.
inline constexpr std::uint32_t kParkedPerModelMax = 10'000;
// All of them hold at most so much of the host bytes: requests for loaded models have the rest.
inline constexpr std::uint64_t kParkedBytesShare = 2;
// A model that nobody waits for any more is told as wanted once in this time at most.
inline constexpr Nanos kWantedAgainNs = 1 * kSecond;

// A model of WantedState::loadable, or one that was and that calls still wait for.
struct LoadingModel {
    LoadableModel wanted;
    std::vector<std::uint32_t> versions;  // in the catalog
    bool listed = false;                  // as loadable, by the last Apply
    bool ready = false;                   // a version can be run,
    bool usable = false;                  // and where it is we are connected
    bool due = false;                     // its calls have waited enough
    bool told = false;                    // as wanted, at
    Nanos told_at = 0;
    ParkedId first = 0;
    ParkedId last = 0;
    std::uint32_t waiting = 0;
    std::uint64_t bytes = 0;

    // It has to be loaded before its requests can be admitted or refused.
    bool missing() const { return listed && !ready; }
    Nanos expected_at(Nanos now) const {
        return wanted.ready_at != 0 ? wanted.ready_at : add_saturating(now, wanted.load_ns);
    }
};

struct ParkedCall {
    LoadingModel* model = nullptr;
    ConnectionId connection = 0;
    ClientStreamId client_stream = 0;  // of the call that is the first one which it holds
    http2::Event event;                // of a unary call; a stream's stays with the stream
    Nanos arrival = 0;
    Nanos deadline = kNever;
    LateBy late_by = LateBy::kBudget;
    std::uint64_t bytes = 0;     // held for it, with what waits behind it on its stream
    std::uint64_t overhead = 0;  // of them: charged to the budget besides the messages
    ParkedId before = 0;         // in the queue of its model
    ParkedId after = 0;
};

class Parking {
  public:
    using Models = std::vector<std::shared_ptr<const ModelConfig>>;

    // What the last Apply says. Due are calls whose model is usable, not loadable any more or
    // cannot be loaded now. `available`: by index of the backend.
    void apply(const std::vector<LoadableModel>& loadable, const Models& models,
               const std::vector<bool>& available);
    // Other backends are available than before.
    void look_again(const Models& models, const std::vector<bool>& available);
    // From now on every call is due.
    void drain();

    // Whether calls for this entry of the catalog must ask awaited(): it is loadable and not ready,
    // or others wait before them. On the path of every request.
    bool diverts(std::uint32_t model) const {
        return model < diverted_.size() && diverted_[model] != 0;
    }
    // What calls for that name wait for; nullptr: they do not.
    LoadingModel* awaited(std::string_view name);

    ParkedId park(ParkedCall&& call);
    // More came on its stream.
    void add_bytes(ParkedId id, std::uint64_t bytes);
    ParkedCall* find(ParkedId id) { return calls_.find(id); }
    // It is out of every list; its model may be gone with it when no Apply lists that.
    ParkedCall take(ParkedId id);

    // Who is next, 0: nobody. Models take turns.
    ParkedId expired(Nanos now) const;
    ParkedId due();
    bool has_work(Nanos now) const { return !due_.empty() || next_deadline() <= now; }
    Nanos next_deadline() const { return deadlines_.empty() ? kNever : deadlines_.begin()->first; }

    std::size_t size() const { return calls_.size(); }
    std::uint64_t bytes() const { return bytes_; }
    // By name.
    template <typename Visit>
    void each_model(Visit&& visit) {
        for (auto& entry : models_) visit(entry.second);
    }

  private:
    void look_up(const Models& models, const std::vector<bool>& available);
    void divert(const LoadingModel& model);
    void find_due();

    std::map<std::string, LoadingModel, std::less<>> models_;
    std::vector<char> diverted_;  // by index in the catalog
    SlotMap<ParkedCall> calls_;
    std::set<std::pair<Nanos, ParkedId>> deadlines_;
    std::vector<LoadingModel*> due_;  // with calls
    std::size_t turn_ = 0;            // in due_
    std::uint64_t bytes_ = 0;
    bool draining_ = false;
};

}  // namespace infersched::gateway
