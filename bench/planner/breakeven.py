"""From which rate on is Redis cheaper than Cosmos DB? Both costs over requests/s, and where they cross."""

from dataclasses import dataclass
from typing import Any

from bench.planner.plan import Plan, again

POINTS_A_DECADE = 12
PRECISION = 1.005
LEAST_RPS, MOST_RPS = 1.0, 100_000.0


@dataclass(frozen=True, slots=True)
class Point:
    """Both stores at one rate, in USD a month and without pods, which cost the same with either."""

    rps: float
    cosmos: float
    capacity: str
    redis: float

    @property
    def redis_wins(self) -> bool:
        """Whether Redis is the cheaper one."""
        return self.redis < self.cosmos


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The curves, and the rate from which Redis is cheaper: None where one of them is at every rate looked at."""

    points: tuple[Point, ...]
    rps: float | None

    @property
    def sentence(self) -> str:
        """Say it."""
        low, high = self.points[0].rps, self.points[-1].rps
        if self.rps is not None:
            return f"from {self.rps:,.0f} requests/s on, Redis is cheaper than Cosmos DB at its cheapest"
        winner = "Redis" if self.points[0].redis_wins else "Cosmos DB at its cheapest"
        return f"{winner} is cheaper at every rate from {low:,.0f} to {high:,.0f} requests/s"

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        points = [
            {"rps": each.rps, "cosmos": each.cosmos, "capacity": each.capacity, "redis": each.redis}
            for each in self.points
        ]
        return {"rps": self.rps, "sentence": self.sentence, "points": points}


def compare(plan: Plan) -> BreakEven:
    """Work the plan out at rates from 1 to 100,000 requests/s, or wider where its own lies near the edge."""
    low = min(LEAST_RPS, plan.given.inputs.peak_rps / 10)
    high = max(MOST_RPS, plan.given.inputs.peak_rps * 10)
    points = [at(plan, low)]
    step = 10 ** (1 / POINTS_A_DECADE)
    while points[-1].rps < high:
        points.append(at(plan, min(high, points[-1].rps * step)))
    crossed = next((place for place, each in enumerate(points) if each.redis_wins), 0)
    return BreakEven(tuple(points), _between(plan, points[crossed - 1].rps, points[crossed].rps) if crossed else None)


def at(plan: Plan, rps: float) -> Point:
    """Give both costs at a rate."""
    there = again(plan, peak_rps=rps)
    return Point(rps, there.capacities[there.cheapest], there.cheapest, there.number("redis_cost"))


def _between(plan: Plan, low: float, high: float) -> float:
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if at(plan, middle).redis_wins else (middle, high)
    return high
