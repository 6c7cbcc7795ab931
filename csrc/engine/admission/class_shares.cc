#include "engine/admission/class_shares.h"

#include <array>
#include <cmath>

#include "engine/core.h"
#include "engine/queues/priorities.h"

namespace infersched::engine {
namespace {

// Control ticks that count.
constexpr double kMemory = 10;
// Of any class at least this part is let in: what keeps another from its target may be something
// else than want of room.
constexpr double kPartMin = 0.5;
constexpr double kProportional = 1.5;
constexpr double kIntegral = 0.12;
// Of what is in time beyond a level's part, so much less leads with every tick.
constexpr double kYield = 0.5;
// So far below nothing it sinks: what is missing for a moment only is made up for.
constexpr double kReserve = -0.5;
// Ticks without anything that leads after which a trial has succeeded; and between trials at most.
constexpr std::uint32_t kLevelTicks = 32;
constexpr std::uint32_t kTrialMax = 4096;
// Classes are brought together when one has less than this part of what it is to have, wholly below
// the second.
constexpr double kFine = 0.95;
constexpr double kPoor = 0.85;
// By so many standard deviations of the count of its ends: a few misses are chance.
constexpr double kDeviations = 3;

// Classes of one level.
struct LevelClasses {
    double missed = 0;  // sum over them, by value
    double count = 0;
    double least = 1;     // of what one has of what it is to have
    double kept_out = 1;  // the least of any
};

double missed(const ModelState& model, const ClassShare& share) {
    return std::max(1 - share.answered() / model.policy.attainment, 0.0);
}

// The part of it that is no chance.
double surely_missed(double missed, double ends) {
    return missed - kDeviations * std::sqrt(missed / ends);
}

}  // namespace

void ClassShare::count(bool answered, bool in_time) {
    ++tick_.ended;
    if (answered) ++tick_.answered;
    if (in_time) ++tick_.in_time;
}

// Whether the next one is of this part of all, evenly spread.
bool ClassShare::next_of(double part, double& credit) {
    credit += part;
    if (credit < 1) return false;
    credit -= 1;
    return true;
}

void ClassShare::tick() {
    const auto add = [](double& recent, double& tick) {
        recent += tick - recent / kMemory;
        tick = 0;
    };
    add(recent_.ended, tick_.ended);
    add(recent_.answered, tick_.answered);
    add(recent_.in_time, tick_.in_time);
}

void ClassShare::steer(double surplus) {
    kept_out_ = std::clamp(kept_out_ + kIntegral * surplus, 0.0, 1 - kPartMin);
    part_ = std::clamp(1 - kept_out_ - kProportional * surplus, kPartMin, 1.0);
}

void ClassShare::yield(double beyond) {
    leading_ = std::clamp(leading_ - kYield * beyond, kReserve, 1.0);
    if (leading_ <= 0) {
        ticks_led_ = 0;
        if (++ticks_level_ == kLevelTicks) trial_at_ = kTrialMin;
        return;
    }
    ticks_level_ = 0;
    if (++ticks_led_ < trial_at_) return;
    leading_ = kReserve;
    ticks_led_ = 0;
    trial_at_ = std::min(2 * trial_at_, kTrialMax);
}

// Of requests of this level that have an objective. nullptr: nothing is decided by them, as nothing
// else runs where the model does.
ClassShare* Core::class_share(ModelState& model, std::uint32_t level) {
    if ((level & kBestEffortBit) != 0) return nullptr;
    if (!model.shares && !yields_beyond(model.policy)) return nullptr;
    const auto levels = std::min<std::size_t>(model.policy.priority_levels, kMeteredLevels);
    if (model.classes.size() != levels) model.classes.assign(levels, ClassShare());
    // Of a request that came when there were more levels: the last one.
    return &model.classes[std::min(metered_level(level << 1), levels - 1)];
}

// The level that a request is to be served at: its own, or that of those that it yields to.
std::uint32_t Core::served_level(ModelState& model, const Arrival& arrival) {
    const std::uint32_t asked = arrival.asked_level;
    if (model.component == kNoSlot || rearrange_ || arrival.deadline == kNever) return asked;
    const std::uint32_t missing = components_[model.component].missing_level;
    if ((asked & kBestEffortBit) != 0 || missing <= asked) return asked;
    ClassShare* share = class_share(model, asked);
    return share == nullptr || share->leads() ? asked : missing;
}

// Visits the classes that have requests: model, level from 0 on, share.
template <class Visit>
void Core::each_class(const Component& component, const Visit& visit) {
    for (const std::uint32_t index : component.metered) {
        ModelState& model = models_[index];
        for (std::size_t l = 0; l < model.classes.size(); ++l) visit(model, l, model.classes[l]);
    }
}

// Of models that are weighed. Levels that have others above them are left as they are: what those
// leave room for decides.
void Core::balance_classes(Component& component) {
    std::array<LevelClasses, kMeteredLevels> levels;
    // What has nothing to run on, or fails, would not be helped.
    const auto compared = [&](const ModelState& model, std::size_t l, const ClassShare& share) {
        const bool weighed = model.policy.value > 0 && model.shared.unserved_since == kNever;
        return weighed && share.known() && share.answers() && component.holds[l].horizon_ns == 0;
    };
    each_class(component, [&](const ModelState& model, std::size_t l, ClassShare& share) {
        share.tick();
        if (!compared(model, l, share)) return;
        const double part = missed(model, share);
        levels[l].missed += part * model.policy.value;
        levels[l].count += 1;
        levels[l].least = std::min(levels[l].least, 1 - surely_missed(part, share.ends()));
    });
    each_class(component, [&](const ModelState& model, std::size_t l, ClassShare& share) {
        const LevelClasses& level = levels[l];
        if (!compared(model, l, share)) return share.steer(-1);
        const double fair = std::min(level.missed / level.count / model.policy.value, 1.0);
        const double poor = std::clamp((kFine - level.least) / (kFine - kPoor), 0.0, 1.0);
        share.steer(poor > 0 ? poor * (fair - missed(model, share)) : -1);
        levels[l].kept_out = std::min(levels[l].kept_out, share.kept_out());
    });
    // Somebody of every level is let in whole, or all would be kept out for what is kept out.
    each_class(component, [&](const ModelState& model, std::size_t l, ClassShare& share) {
        if (compared(model, l, share)) share.relax(levels[l].kept_out);
    });
}

// What all of a level has beyond its part is served as the lowest level that misses its own. Where
// nothing of a level leads any more, nothing has to be left to it.
void Core::yield_levels(Component& component) {
    component.missing_level = 0;
    component.behind = 0;
    if (!component.levels) return;
    bool yields = false;
    std::size_t missing = 0;
    each_class(component, [&](const ModelState& model, std::size_t l, const ClassShare& share) {
        const auto level = static_cast<std::uint32_t>(l + 1);
        const double own = part_of_level(model.policy, level);
        const double part = own > 0 ? own : model.policy.attainment;
        yields |= yields_beyond(model.policy);
        if (share.known() && share.in_time() < part) component.behind |= Levels{1} << l;
        if (share.known() && share.in_time() < kFine * part) missing = std::max(missing, l);
    });
    if (!yields) return;
    component.missing_level = static_cast<std::uint32_t>(missing + 1);
    each_class(component, [&](ModelState& model, std::size_t l, ClassShare& share) {
        const auto level = static_cast<std::uint32_t>(l + 1);
        const double part = part_of_level(model.policy, level);
        if (part == 0 || l >= missing || !share.known()) return share.lead();
        share.yield(share.in_time() - part);
        if (share.leading() > 0) return;
        for (std::uint32_t g = 0; g < model.groups.slots(); ++g) model.groups[g].mix.forget(l);
    });
}

}  // namespace infersched::engine
