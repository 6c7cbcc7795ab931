#include "engine/queues/fair_shares.h"

#include <algorithm>

namespace infersched::engine {

FairShares::Account& FairShares::account(std::uint32_t tenant) {
    if (tenant >= accounts_.size()) accounts_.resize(tenant + 1);
    return accounts_[tenant];
}

// Puts a tenant among those that want more, or takes it out.
void FairShares::want(std::uint32_t tenant, bool wants) {
    Account& own = accounts_[tenant];
    if (own.wants == wants) return;
    own.wants = wants;
    if (wants) {
        wanting_.insert({own.place_ns, tenant});
    } else {
        wanting_.erase({own.place_ns, tenant});
    }
}

// More of a tenant was served; time goes on with the one that was served least.
void FairShares::move(std::uint32_t tenant, double by_ns) {
    Account& own = accounts_[tenant];
    const bool wants = own.wants;
    want(tenant, false);
    own.place_ns += by_ns;
    want(tenant, wants);
    const double least = wanting_.empty() ? own.place_ns : wanting_.begin()->first;
    virtual_ns_ = std::max(virtual_ns_, least);
}

// Every request looks whether one tenant has gone: none is kept for long, and no request pays for
// many.
void FairShares::look_at_one(Nanos now) {
    if (active_.empty()) return;
    hand_ = (hand_ + 1) % static_cast<std::uint32_t>(active_.size());
    const std::uint32_t tenant = active_[hand_];
    Account& seen = accounts_[tenant];
    if (seen.waiting > 0) return;
    if (seen.hungry_until <= now) want(tenant, false);
    if (seen.active_until > now) return;
    active_weight_ -= seen.weight;
    seen.weight = 0;
    active_[hand_] = active_.back();
    active_.pop_back();
    if (active_.empty()) active_weight_ = 0;
}

// The account of a tenant that has a request now.
FairShares::Account& FairShares::open(std::uint32_t tenant, double weight, Nanos now) {
    Account& own = account(tenant);
    if (own.weight == 0) active_.push_back(tenant);
    active_weight_ += weight - own.weight;
    own.weight = weight;
    own.active_until = add_saturating(now, kActiveNs);
    if (own.waiting == 0 && own.hungry_until <= now) {
        want(tenant, false);
        own.counter_ns = own.place_ns = std::max(own.counter_ns, virtual_ns_);
    }
    return own;
}

bool FairShares::over(std::uint32_t tenant, double weight, Nanos before_ns, Nanos now) {
    look_at_one(now);
    const Account& own = open(tenant, weight, now);
    if (active_.size() < 2) return false;
    const double least = wanting_.empty() ? virtual_ns_ : wanting_.begin()->first;
    const double ahead_ns = (own.counter_ns - least) * active_weight_;
    // One that cannot wait at all is not over its share as long as nobody was served less.
    return ahead_ns > static_cast<double>(before_ns);
}

void FairShares::enter(std::uint32_t tenant, double weight, Nanos work_ns, Nanos now) {
    Account& own = open(tenant, weight, now);
    want(tenant, true);
    ++own.waiting;
    own.counter_ns += static_cast<double>(work_ns) / own.weight;
}

void FairShares::refuse(std::uint32_t tenant, Nanos now) {
    account(tenant).hungry_until = add_saturating(now, kActiveNs);
    want(tenant, true);
}

void FairShares::deny(std::uint32_t tenant, std::size_t level, Nanos work_ns, Nanos now) {
    const double place_ns = account(tenant).place_ns;
    Denied& denied = denied_[level];
    if (denied.until <= now) denied.work_ns = 0;
    if (tenant != denied.tenant) {
        if (denied.work_ns > 0 && place_ns >= accounts_[denied.tenant].place_ns) return;
        denied.work_ns = std::min<Nanos>(denied.work_ns, 0);
        denied.tenant = tenant;
    }
    denied.work_ns = std::min(denied.work_ns + work_ns, kDeniedKeptNs);
    denied.until = add_saturating(now, kDeniedKeptNs);
}

bool FairShares::gives_way(std::uint32_t tenant, std::size_t level, Nanos work_ns, Nanos now) {
    const double place_ns = account(tenant).place_ns;
    for (std::size_t above = 0; above <= level; ++above) {
        Denied& denied = denied_[above];
        if (denied.work_ns <= 0 || denied.until <= now) continue;
        if (place_ns <= accounts_[denied.tenant].place_ns) continue;
        denied.work_ns -= work_ns;
        return true;
    }
    return false;
}

void FairShares::leave(std::uint32_t tenant) {
    Account& own = accounts_[tenant];
    --own.waiting;
    if (own.waiting == 0 && own.hungry_until == 0) want(tenant, false);
}

void FairShares::leave_all() {
    for (std::uint32_t tenant = 0; tenant < accounts_.size(); ++tenant) {
        Account& own = accounts_[tenant];
        if (own.waiting == 0) continue;
        own.waiting = 0;
        own.counter_ns = own.place_ns;
        want(tenant, false);
    }
}

void FairShares::serve(std::uint32_t tenant, Nanos work_ns) {
    move(tenant, static_cast<double>(work_ns) / account(tenant).weight);
    leave(tenant);
}

void FairShares::correct(std::uint32_t tenant, Nanos work_ns) {
    Account& own = account(tenant);
    if (own.weight == 0) return;
    const double change = static_cast<double>(work_ns) / own.weight;
    own.counter_ns += change;
    move(tenant, change);
}

void FairShares::give_back(std::uint32_t tenant, Nanos work_ns) {
    Account& own = account(tenant);
    own.counter_ns -= static_cast<double>(work_ns) / own.weight;
    leave(tenant);
}

}  // namespace infersched::engine
