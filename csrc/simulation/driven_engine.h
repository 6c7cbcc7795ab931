// The engine with what a run needs around it, and, where truths are checked, its checks: a copy of
// it, made by save() and load(), that must act alike.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "simulation/truths.h"

namespace infersched::simulation {

class DrivenEngine {
  public:
    // `truths`: null, or what is told of every broken one.
    explicit DrivenEngine(Truths* truths) : engine_(page_.get()), truths_(truths) {}

    // Everything but submit and step: call(engine).
    template <class Call>
    void event(Call call) {
        call(engine_);
        if (truths_ == nullptr) return;
        engine_.check_invariants();
        if (copy_ != nullptr) call(*copy_);
    }
    engine::Admission submit(const engine::Request& request, Nanos now);
    void step(Nanos now);
    // Forgets the actions. Now and then the copy becomes one of the present state.
    void clear_actions();
    const engine::Engine& get() const { return engine_; }

  private:
    struct FreeMemory {
        void operator()(void* memory) const { std::free(memory); }
    };
    using Page = std::unique_ptr<engine::CountersPage, FreeMemory>;
    // Megabytes, of which a run touches little.
    static Page fresh_page() {
        void* memory = std::calloc(1, sizeof(engine::CountersPage));
        return Page(static_cast<engine::CountersPage*>(memory));
    }
    void renew_copy();
    bool acts_alike() const;

    Page page_ = fresh_page();
    engine::Engine engine_;
    Truths* truths_;
    Page copy_page_;
    std::unique_ptr<engine::Engine> copy_;
    std::uint64_t steps_ = 0;
    std::uint64_t renew_at_ = 50;
};

}  // namespace infersched::simulation
