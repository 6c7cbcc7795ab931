// What becomes of the requests of a class, a priority level of a model whose executors others
// share, and the part of them that is let in so that the others are not left behind.
//
// What is most urgent goes first, and under overload that favours who has the longer objective: a
// slow model keeps the executor for as long as all requests of a fast one can wait, and has its own
// in time. So while classes of one level miss their targets, those of other models that are better
// off are let in in part only, as many as bring the missed parts together. All of this only among
// models that are to be weighed (ModelPolicy::value).
// And a level that is to go before those below it up to a part of its requests yields to them
// beyond that.
#pragma once

#include <algorithm>
#include <cstdint>

namespace infersched::engine {

class ClassShare {
  public:
    // How a request with an objective ended, or that it was refused for reasons of load.
    void count(bool answered, bool in_time);
    // Whether the next request is one of the part that is let in.
    bool offer() { return part_ >= 1 || next_of(part_, credit_); }
    // Whether the next request goes before those of lower levels.
    bool leads() { return leading_ >= 1 || next_of(std::max(leading_, 0.0), lead_credit_); }
    // At the end of every control tick.
    void tick();
    // Enough ends of about the last second are known to tell.
    bool known() const { return recent_.ended >= kEndsMin; }
    bool answers() const { return recent_.answered >= 1; }
    double ends() const { return recent_.ended; }
    // The part of the requests that was answered, be it late: that is not for want of room.
    double answered() const { return recent_.answered / recent_.ended; }
    double in_time() const { return recent_.in_time / recent_.ended; }
    // Lets in less the more it is better off (surplus > 0) than others of its level.
    void steer(double surplus);
    double kept_out() const { return kept_out_; }
    // Lets in so much more: what is kept out of all is kept out for nobody.
    void relax(double part) { kept_out_ -= part, part_ = std::min(part_ + part, 1.0); }
    // Fewer of them lead the more of it is in time beyond what must be. Room for those that lead
    // costs all of them some: whether none has to is tried out from time to time.
    void yield(double beyond);
    void lead() { leading_ = 1, ticks_led_ = ticks_level_ = 0; }
    double leading() const { return leading_; }

    template <class Archive>
    void archive(Archive& archive) {
        for (Ends* ends : {&tick_, &recent_}) {
            archive(ends->ended);
            archive(ends->answered);
            archive(ends->in_time);
        }
        archive(kept_out_);
        archive(part_);
        archive(credit_);
        archive(leading_);
        archive(lead_credit_);
        archive(ticks_led_);
        archive(ticks_level_);
        archive(trial_at_);
    }

  private:
    static constexpr double kEndsMin = 8;
    static constexpr std::uint32_t kTrialMin = 256;

    struct Ends {
        double ended = 0;
        double answered = 0;
        double in_time = 0;
    };

    static bool next_of(double part, double& credit);

    Ends tick_;            // of this one
    Ends recent_;          // of those before, the older the less
    double kept_out_ = 0;  // what the surpluses add up to
    double part_ = 1;
    double credit_ = 0;
    double leading_ = 1;
    double lead_credit_ = 0;
    std::uint32_t ticks_led_ = 0;  // in a row
    std::uint32_t ticks_level_ = 0;
    std::uint32_t trial_at_ = kTrialMin;
};

}  // namespace infersched::engine
