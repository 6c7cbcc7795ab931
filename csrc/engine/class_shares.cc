#include "engine/class_shares.h"

#include <array>
#include <cmath>

#include "engine/core.h"
#include "engine/priorities.h"

namespace infersched::engine {
namespace {

// Control ticks that count.
constexpr double kMemory = 10;
// Of any class at least this part is let in: what keeps another from its target may be something
// else than want of room.
constexpr double kPartMin = 0.5;
constexpr double kProportional = 1;
constexpr double kIntegral = 0.06;
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
    double least = 1;  // of what one has of what it is to have
};

double missed(const ModelState& model, const ClassShare& share) {
    return std::max(1 - share.answered() / model.policy.attainment, 0.0);
}

// The part of it that is no chance.
double surely_missed(double missed, double ends) {
    return missed - kDeviations * std::sqrt(missed / ends);
}

}  // namespace

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

// Of requests of this level that have an objective. nullptr: nothing else runs where its model
// does.
ClassShare* Core::class_share(ModelState& model, std::uint32_t level) {
    if (!model.shares || (level & kBestEffortBit) != 0) return nullptr;
    const auto levels = std::min<std::size_t>(model.policy.priority_levels, kMeteredLevels);
    if (model.classes.size() != levels) model.classes.assign(levels, ClassShare());
    // Of a request that came when there were more levels: the last one.
    return &model.classes[std::min(metered_level(level << 1), levels - 1)];
}

// Levels that have others above them are left as they are: what those leave room for decides.
void Core::balance_classes(Component& component) {
    std::array<LevelClasses, kMeteredLevels> levels;
    const auto each = [&](const auto& visit) {
        for (const std::uint32_t index : component.metered) {
            ModelState& model = models_[index];
            for (std::size_t l = 0; l < model.classes.size(); ++l)
                visit(model, l, model.classes[l]);
        }
    };
    // What has nothing to run on would not be helped.
    const auto compared = [&](const ModelState& model, std::size_t l, const ClassShare& share) {
        const bool served = model.shared.unserved_since == kNever;
        return served && share.known() && component.holds[l].horizon_ns == 0;
    };
    each([&](const ModelState& model, std::size_t l, ClassShare& share) {
        share.tick();
        if (!compared(model, l, share)) return;
        const double part = missed(model, share);
        levels[l].missed += part * model.policy.value;
        levels[l].count += 1;
        levels[l].least = std::min(levels[l].least, 1 - surely_missed(part, share.ends()));
    });
    each([&](const ModelState& model, std::size_t l, ClassShare& share) {
        const LevelClasses& level = levels[l];
        if (!compared(model, l, share)) return share.steer(-1);
        const double fair = std::min(level.missed / level.count / model.policy.value, 1.0);
        const double poor = std::clamp((kFine - level.least) / (kFine - kPoor), 0.0, 1.0);
        share.steer(poor > 0 ? poor * (fair - missed(model, share)) : -1);
    });
}

}  // namespace infersched::engine
