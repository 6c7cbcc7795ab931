"""The workloads that policies are compared on, and the goodput that is known of each.

Latencies are (alpha, beta) in ms per row and per batch. All run on eight executors. The figures are
requests/s at which 99 % of all requests are in time; a pair is the range over seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from scheduler.simulation.scenario import Arrivals, Latency, Model, Scenario

EXECUTORS = 8

Figure = tuple[float, float]


@dataclass(frozen=True)
class Workload:
    """`models` alike, with popularities proportional to 1 / rank**`zipf`."""

    latency: Latency
    objective_ms: float
    models: int = 1
    zipf: float = 0.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    executors: int = EXECUTORS

    def scenario(self, rate_per_s: float, *, seed: int = 1, requests: int = 100_000) -> Scenario:
        """The workload at `rate_per_s` over all models."""
        weights = [(rank + 1) ** -self.zipf for rank in range(self.models)]
        models = [
            Model(
                self.latency,
                self.objective_ms,
                replace(self.arrivals, rate_per_s=rate_per_s * weight / sum(weights)),
            )
            for weight in weights
        ]
        return Scenario(models, self.executors, seed=seed, requests=requests)

    @property
    def capacity_per_s(self) -> float:
        """No policy serves more: the rate of batches of 1,024 rows."""
        seconds = (1024 * self.latency.alpha_ms + self.latency.beta_ms) / 1000
        return self.executors * 1024 / seconds


SMALL = Latency(1.053, 5.072)

WORKLOADS: dict[str, Workload] = {
    "A": Workload(SMALL, 25),
    "B": Workload(Latency(5.090, 18.368), 70),
    "C": Workload(SMALL, 25, models=20),
    "E": Workload(SMALL, 25, models=5, zipf=0.9),
    "F": Workload(SMALL, 50, models=10, zipf=0.9),
    "G": Workload(SMALL, 25, arrivals=Arrivals("gamma", shape=0.1)),
    "J": Workload(SMALL, 100, models=20),
    "K": Workload(Latency(5, 1), 50, models=4),
}

# By workload and policy, as the names of scheduler.simulation.compare.
GIVEN: dict[str, dict[str, Figure]] = {
    "A": {
        "static_default": (2476, 2476),
        "static_tuned": (5214, 5214),
        "clockwork": (4322, 4322),
        "nexus": (4227, 4227),
        "shepherd": (5063, 5063),
        "symphony": (5293, 5365),
        "just_enough": (5508, 5508),
    },
    "B": {
        "static_default": (396, 396),
        "static_tuned": (891, 891),
        "clockwork": (580, 580),
        "nexus": (617, 617),
        "shepherd": (841, 841),
        "symphony": (942, 946),
        "just_enough": (968, 968),
    },
    "C": {
        "static_default": (2499, 2499),
        "static_tuned": (2499, 2499),
        "clockwork": (1895, 1895),
        "nexus": (517, 517),
        "shepherd": (1425, 1425),
        "symphony": (1791, 1855),
        "just_enough": (2714, 2746),
    },
    "E": {
        "static_default": (3311, 3311),
        "static_tuned": (4267, 4267),
        "clockwork": (3494, 3494),
        "nexus": (3081, 3081),
        "shepherd": (3861, 3861),
        "symphony": (4402, 4482),
        "just_enough": (4561, 4681),
    },
    "F": {
        "static_default": (4526, 4526),
        "static_tuned": (5232, 5232),
        "clockwork": (5096, 5096),
        "nexus": (4743, 4743),
        "shepherd": (4499, 4499),
        "symphony": (4825, 4924),
        "just_enough": (5612, 5685),
    },
    "G": {
        "static_default": (223, 223),
        "static_tuned": (3614, 3614),
        "clockwork": (2866, 2866),
        "nexus": (3081, 3081),
        "shepherd": (4219, 4219),
        "symphony": (3662, 3813),
        "just_enough": (4378, 4482),
    },
    "J": {
        "static_default": (6100, 6100),
        "static_tuned": (6043, 6043),
        "clockwork": (5771, 5771),
        "nexus": (4683, 4683),
        "shepherd": (5593, 5593),
        "symphony": (4870, 4983),
        "just_enough": (6175, 6193),
    },
    "K": {
        "static_default": (1389, 1389),
        "static_tuned": (1497, 1497),
        "clockwork": (1524, 1524),
        "nexus": (1382, 1382),
        "shepherd": (1493, 1493),
        "symphony": (1355, 1389),
        "just_enough": (1499, 1518),
    },
}


def known(workload: str, policy: str) -> Figure:
    """The figure that a goodput is held against; where there is none, of the policy to beat."""
    figures = GIVEN[workload]
    return figures.get(policy, figures["just_enough"])
