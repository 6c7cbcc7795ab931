// Start-time fair queueing of tenants over the executors of one component, in device time.
//
// Every tenant has a counter, the device time of its requests over its weight, and a place, how
// much of that was served. The virtual time is the least place of the tenants that want more:
// requests of theirs wait, or were refused a moment ago. One that wakes up is lifted to it, so that
// nobody saves up. Served fairly, a request waits for the work by which its tenant's counter is
// ahead of the virtual time; one that cannot wait so long is over the share of its tenant: it goes
// behind those that are not, and takes what they leave (after Goyal, Vin and Cheng, "Start-time
// fair queuing", 1996).
//
// Where objectives leave time for little more than a batch, who comes first would take what there
// is, whatever was served. So for a request that finds no room while its tenant was served less
// than another, as much work of that one over its share is refused: the next request finds the
// room.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "base/time.h"
#include "engine/admission/backlog.h"

namespace infersched::engine {

class FairShares {
  public:
    // A tenant counts for the shares of the others this long after its last request.
    static constexpr Nanos kActiveNs = kSecond;
    // What a request without a deadline may wait.
    static constexpr Nanos kPatienceNs = kSecond;
    // How long work that was denied is made good, and how much of it at the most.
    static constexpr Nanos kDeniedKeptNs = 200 * kMillisecond;

    // Whether a request that can wait until work of `before_ns` was started is over its share.
    // Alone, a tenant is not.
    bool over(std::uint32_t tenant, double weight, Nanos before_ns, Nanos now);
    // Whether there are others beside one tenant.
    bool contended() const { return active_.size() > 1; }
    // A request comes into a queue; it takes `work_ns` of device time. It may have been asked about
    // so long ago that its tenant no longer counts.
    void enter(std::uint32_t tenant, double weight, Nanos work_ns, Nanos now);
    // A request that was asked about is refused for want of executors.
    void refuse(std::uint32_t tenant, Nanos now);
    // A request that was asked about, of a backlog level, finds no room.
    void deny(std::uint32_t tenant, std::size_t level, Nanos work_ns, Nanos now);
    // Whether one over its share gives way for what found none, of its level or above, of a tenant
    // that was served less.
    bool gives_way(std::uint32_t tenant, std::size_t level, Nanos work_ns, Nanos now);
    // It goes, and takes what was said.
    void serve(std::uint32_t tenant, Nanos work_ns);
    // What was served took so much more, in the batch that it was in.
    void correct(std::uint32_t tenant, Nanos work_ns);
    // Nothing waits any more: what does enters again.
    void leave_all();
    // It ends without having run.
    void give_back(std::uint32_t tenant, Nanos work_ns);

    template <class Archive>
    void archive(Archive& archive) {
        archive(virtual_ns_);
        archive.vector_size(accounts_, 45);
        for (Account& account : accounts_) {
            archive(account.counter_ns);
            archive(account.place_ns);
            archive(account.weight);
            archive(account.active_until);
            archive(account.waiting);
            archive(account.hungry_until);
            archive(account.wants);
        }
        archive(active_);
        archive(active_weight_);
        archive(hand_);
        for (Denied& denied : denied_) {
            archive(denied.tenant);
            archive(denied.work_ns);
            archive(denied.until);
        }
        if constexpr (!Archive::kReads) return;
        wanting_.clear();
        for (std::uint32_t tenant = 0; tenant < accounts_.size(); ++tenant) {
            if (accounts_[tenant].wants) wanting_.insert({accounts_[tenant].place_ns, tenant});
        }
    }

  private:
    struct Account {
        double counter_ns = 0;  // over the weight
        double place_ns = 0;
        double weight = 0;  // 0: not in active_
        Nanos active_until = 0;
        std::uint32_t waiting = 0;  // requests
        Nanos hungry_until = 0;     // one was refused not long ago
        bool wants = false;         // in wanting_
    };

    // Work that found no room, of the tenant that was served least, less what was refused for it.
    struct Denied {
        std::uint32_t tenant = 0;
        Nanos work_ns = 0;
        Nanos until = 0;
    };

    Account& account(std::uint32_t tenant);
    Account& open(std::uint32_t tenant, double weight, Nanos now);
    void look_at_one(Nanos now);
    void want(std::uint32_t tenant, bool wants);
    void move(std::uint32_t tenant, double by_ns);
    void leave(std::uint32_t tenant);

    double virtual_ns_ = 0;
    std::set<std::pair<double, std::uint32_t>> wanting_;  // (place, tenant)
    std::vector<Account> accounts_;                       // by tenant
    std::vector<std::uint32_t> active_;                   // tenants
    double active_weight_ = 0;
    std::uint32_t hand_ = 0;  // the next of active_ to be looked at
    std::array<Denied, Backlog::kLevels> denied_{};
};

}  // namespace infersched::engine
