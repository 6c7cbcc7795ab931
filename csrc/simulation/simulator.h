// Runs one scenario under one reference policy.
#pragma once

#include "simulation/policy.h"
#include "simulation/scenario.h"

namespace infersched::simulation {

// Deterministic: the same scenario and a new policy of the same settings give the same metrics.
// Arrivals go on after the last counted request until every counted one is answered or too late,
// so that the end of a run is as loaded as its middle.
Metrics simulate(const Scenario& scenario, Policy& policy);

}  // namespace infersched::simulation
