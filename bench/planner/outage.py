"""A day of everything that a plan has, with a node of each kind lost in the busiest hour: a model, not a measurement.

Pods are lost with their node, as `bench.planner.autoscaling` replays it; at the same second a primary of the Redis
Cluster is, and its users get the popular list until its replica answers. What a day costs is the plan's.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from bench.planner.autoscaling import HOUR_S, LOSS_S, STEP_S, Day, Outcome, choose, make_day, replay
from bench.planner.inputs import HOURS, hourly_shares
from bench.planner.plan import Plan
from bench.planner.prices import HOURS_A_MONTH

LABEL = "a model, from figures measured of one core; no such fleet was run"


@dataclass(frozen=True, slots=True)
class OutageDay:
    """What a day came to: of one region the time and the requests, of all regions the money."""

    pods: Outcome
    requests: float
    """Of the region, in the day."""

    popular: float
    """Requests that were answered by the popular list, as their users' primary was lost."""

    outside_s: int
    """In which pods are short, or a primary is lost."""

    usd: dict[str, float]
    """By what it is paid for, in a day."""

    @property
    def outside_share(self) -> float:
        """The share of the day's requests that were refused, or answered by the popular list."""
        return (self.pods.refused + self.popular) / self.requests

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The result in words."""
        hpa = self.pods.hpa
        return [
            ("requests, a region", f"{self.requests:,.0f}"),
            ("pods", f"{hpa.min_pods} - {hpa.max_pods} at {hpa.cpu_percent} % CPU, {self.pods.most_pods} at most"),
            ("pod-hours", f"{self.pods.pod_hours:,.1f}"),
            ("outside of the objective", f"{self.outside_s:,} s"),
            ("refused, for want of pods", f"{self.pods.refused:,.0f}"),
            ("answered by the popular list", f"{self.popular:,.0f}"),
            ("of all requests", f"{self.outside_share:.4%}"),
            *((f"USD a day: {what}", f"{usd:,.2f}") for what, usd in self.usd.items()),
            ("USD a day: all", f"{sum(self.usd.values()):,.2f}"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "label": LABEL,
            "pods": self.pods.to_json(),
            "requests": self.requests,
            "popular": self.popular,
            "outside_s": self.outside_s,
            "outside_share": self.outside_share,
            "usd_day": self.usd,
        }


def replay_day(plan: Plan) -> OutageDay:
    """Replay a plan's day with the autoscaler that is chosen for it."""
    inputs, hpa = plan.inputs, choose(plan).chosen.hpa
    day, share = _failing(plan, make_day(plan))
    outcome = replay(hpa, day)
    popular = sum(day.load[step] for step in day.failing) * share * STEP_S
    pods_usd = outcome.pod_hours * inputs.pod_cpus * plan.number("usd_cpu_hour") * inputs.regions
    costs = {"pods": pods_usd} | {
        what: plan.number(name) * HOURS / HOURS_A_MONTH for what, name in _stores(plan).items() if name in plan.figures
    }
    return OutageDay(outcome, sum(day.load) * STEP_S, popular, outcome.outside_s, costs)


def _failing(plan: Plan, day: Day) -> tuple[Day, float]:
    """Lose a primary of the cluster in the busiest hour; return also which share of the users it has."""
    if "cluster_lost_share" not in plan.figures:
        return day, 0.0
    shares = hourly_shares(plan.inputs.profile)
    first = (shares.index(max(shares)) * HOUR_S + LOSS_S) // STEP_S
    steps = ceil(plan.inputs.failover_s / STEP_S)
    return replace(day, failing=frozenset(range(first, first + steps))), plan.number("cluster_lost_share")


def _stores(plan: Plan) -> dict[str, str]:
    """Return which figures a day pays for besides pods: the cluster where there is one, or else Cosmos DB."""
    store = {"Redis Cluster": "cluster_cost"} if "cluster_cost" in plan.figures else {"Cosmos DB": "cheapest_cost"}
    return store | {"Spark": "spark_cost"}
