#include "simulation/driven_engine.h"

#include <algorithm>

namespace infersched::simulation {

namespace {

bool alike(const engine::Action& a, const engine::Action& b) {
    return a.kind == b.kind && a.outcome == b.outcome && a.reason == b.reason && a.code == b.code &&
           a.model == b.model && a.backend == b.backend && a.request == b.request &&
           a.user == b.user && a.batch == b.batch && a.member_count == b.member_count &&
           a.rows == b.rows && a.rows_padded == b.rows_padded && a.at == b.at &&
           a.queued_ns == b.queued_ns;
}

bool same_member(const engine::BatchMember& a, const engine::BatchMember& b) {
    return a.request == b.request && a.user == b.user && a.row_begin == b.row_begin &&
           a.rows == b.rows;
}

}  // namespace

engine::Admission DrivenEngine::submit(const engine::Request& request, Nanos now) {
    const engine::Admission admission = engine_.submit(request, now);
    if (truths_ == nullptr) return admission;
    engine_.check_invariants();
    truths_->submitted(request, admission);
    if (copy_ == nullptr) return admission;
    const engine::Admission again = copy_->submit(request, now);
    truths_->require(again.handle == admission.handle && again.reason == admission.reason &&
                         again.retry_after_ns == admission.retry_after_ns &&
                         again.predicted_ns == admission.predicted_ns,
                     "an engine from save() and load() admits alike");
    return admission;
}

void DrivenEngine::step(Nanos now) {
    engine_.step(now);
    if (truths_ == nullptr) return;
    engine_.check_invariants();
    truths_->stepped(engine_, now);
    if (copy_ == nullptr) return;
    copy_->step(now);
    truths_->require(acts_alike(), "an engine from save() and load() acts alike");
}

bool DrivenEngine::acts_alike() const {
    const auto& actions = engine_.actions();
    const auto& others = copy_->actions();
    const auto& members = engine_.members();
    return actions.size() == others.size() && members.size() == copy_->members().size() &&
           std::equal(actions.begin(), actions.end(), others.begin(), alike) &&
           std::equal(members.begin(), members.end(), copy_->members().begin(), same_member);
}

void DrivenEngine::clear_actions() {
    engine_.clear_actions();
    if (truths_ == nullptr) return;
    if (copy_ != nullptr) copy_->clear_actions();
    if (++steps_ < renew_at_) return;
    renew_at_ = steps_ * 2;
    renew_copy();
}

void DrivenEngine::renew_copy() {
    copy_.reset();
    copy_page_ = fresh_page();
    copy_ = std::make_unique<engine::Engine>(copy_page_.get());
    truths_->require(copy_->load(engine_.save()), "what save() gives can be loaded");
    copy_->check_invariants();
    truths_->require(copy_->save() == engine_.save(), "save() gives what load() took");
}

}  // namespace infersched::simulation
