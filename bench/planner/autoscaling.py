"""A day's load replayed against autoscalers, and the parameters that keep the objective with the fewest pod-hours.

The day is the plan's own, interpolated between its hours. In its quietest and in its busiest hour two things go wrong:
a node is lost, and the load doubles within a minute. A pod has the CPU that it requests, as on a node that is full.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import inf, pi, sin
from typing import Any

from bench.planner.figures import round_up
from bench.planner.hpa import DOWN, SYNC_S, UP, Autoscaler, Hpa, Metric, Policy, Rules
from bench.planner.inputs import HOURS, hourly_shares
from bench.planner.plan import Plan

HOUR_S = 3600
STEP_S = 5
# No load is smooth: waves of so many seconds, by each of which it is up to so much higher or lower.
WAVES_S, WAVE = (97, 613), 0.05
# What goes wrong in an hour, in seconds from its beginning: a node is lost; the load doubles within a minute, and falls
# as fast ten minutes later.
LOSS_S, BURST_S = 1200, 1800
BURST, RAMP_S, HELD_S = 2.0, 60, 600
# Pods are spread evenly over so many nodes, or more if that many cannot hold them.
NODES = 3
# How old a metric is when the autoscaler reads it, and of how many seconds it is the mean. metrics-server reads every
# 15 s what kubelets measured in the 15 s before; requests are counted over a minute of scrapes.
CPU_AGE_S, CPU_WINDOW_S = 15, 15
RATE_AGE_S, RATE_WINDOW_S = 30, 60

# What is tried, the defaults of Kubernetes first, as the first of equals is chosen. With more than 90 %,
# pods use more than they request within the tolerance already.
CPU_PERCENTS = (40, 50, 60, 70, 80, 90)
UPS = (UP, Rules(0, (Policy("Pods", 1, 60),)))
DOWNS = (DOWN, Rules(300, (Policy("Pods", 1, 60),)))
# More than the plan's least, which are two, as the one pod's node may be lost.
MORE_PODS = (0, 1)
# The reference architecture's parameters; there may be as many pods here, too, if no more are needed.
REFERENCE_PODS, REFERENCE_PERCENT = (1, 10), 70


@dataclass(frozen=True, slots=True)
class Day:
    """Requests/s in one region at each step of a day, the steps at which a node is lost, and what a pod can do."""

    load: Sequence[float]
    losses: frozenset[int]
    pod_rps: float
    """What a pod answers by all of its CPU; it never answers more."""
    objective_rps: float
    """What it answers inside of the objective."""
    start_s: float
    node_pods: int = 1_000_000
    """How many pods a node can hold at most."""

    failing: frozenset[int] = frozenset()
    """The steps at which some users' lists cannot be read, for a primary of the store is lost."""

    def hpa(self, min_pods: int, cpu_percent: int, max_pods: int = 0, up: Rules = UP, down: Rules = DOWN) -> Hpa:
        """Return an autoscaler whose two metrics say the same; *max_pods* by default as many as the burst takes."""
        target_rps = self.pod_rps * cpu_percent / 100
        most = max_pods or max(REFERENCE_PODS[1], round_up(max(self.load) / target_rps, 1))
        return Hpa(min_pods, most, cpu_percent, max(1, round(target_rps)), up, down)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an autoscaler made of a day: the time outside of the objective, and what its pods came to."""

    hpa: Hpa
    outside_s: int
    pod_hours: float
    most_pods: int
    changes: int
    refused: float
    """Requests beyond what the pods can answer by all of their CPU."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the parameters as a manifest has them."""
        return asdict(self) | {"hpa": self.hpa.to_spec()}


@dataclass(frozen=True, slots=True)
class Choice:
    """All that was tried, what was chosen of it, and what the reference architecture's parameters come to."""

    chosen: Outcome
    reference: Outcome
    tried: tuple[Outcome, ...]
    budget_s: float

    def like_chosen(self) -> Iterator[Outcome]:
        """Yield what was chosen and what differs from it by the CPU's target only."""
        hpa = self.chosen.hpa
        for each in self.tried:
            if (each.hpa.min_pods, each.hpa.up, each.hpa.down) == (hpa.min_pods, hpa.up, hpa.down):
                yield each

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "budget_s": self.budget_s,
            "chosen": self.chosen.to_json(),
            "reference": self.reference.to_json(),
            "tried": [each.to_json() for each in self.tried],
        }


def choose(plan: Plan) -> Choice:
    """Replay a plan's day against all that is tried: of those within its budget, choose the one of fewest pod-hours.

    If none is within it, the one that is least outside of the objective is chosen.
    """
    day, inputs = make_day(plan), plan.inputs
    tried = tuple(replay(hpa, day) for hpa in _candidates(day, inputs.min_pods))
    chosen = min(tried, key=lambda each: (max(0.0, each.outside_s - inputs.outside_s), each.pod_hours))
    least, most = REFERENCE_PODS
    return Choice(chosen, replay(day.hpa(least, REFERENCE_PERCENT, most), day), tried, inputs.outside_s)


def _candidates(day: Day, least: int) -> Iterator[Hpa]:
    for more, percent, up, down in product(MORE_PODS, CPU_PERCENTS, UPS, DOWNS):
        yield day.hpa(least + more, percent, up=up, down=down)


def make_day(plan: Plan) -> Day:
    """Return the day of a plan's region, and what goes wrong in it."""
    inputs, peak = plan.inputs, plan.number("peak_region")
    shares = hourly_shares(inputs.profile)
    hours = {shares.index(min(shares)), shares.index(max(shares))}
    pod_rps = 1e6 * inputs.pod_cpus / inputs.request_cpu_us
    objective_rps = inputs.pod_rps or pod_rps * inputs.objective_utilisation
    return Day(
        [peak * _share(shares, now_s) * _burst(hours, now_s) for now_s in range(0, HOURS * HOUR_S, STEP_S)],
        frozenset((hour * HOUR_S + LOSS_S) // STEP_S for hour in hours),
        max(pod_rps, objective_rps),
        objective_rps,
        inputs.pod_start_s,
        max(1, int(inputs.node_cpus / inputs.pod_cpus)),
    )


def _share(shares: Sequence[float], now_s: int) -> float:
    """Return the load of a moment as a share of the busiest hour's; an hour's rate is that of its middle."""
    hour, part = divmod(now_s / HOUR_S - 0.5, 1)
    before, after = shares[int(hour) % HOURS], shares[int(hour + 1) % HOURS]
    waves = sum(WAVE * sin(2 * pi * now_s / each_s) for each_s in WAVES_S)
    return (before + (after - before) * part) * (1 + waves)


def _burst(hours: set[int], now_s: int) -> float:
    """Return by what the load of a moment is multiplied."""
    hour, second = divmod(now_s, HOUR_S)
    since_s, left_s = second - BURST_S, BURST_S + HELD_S + RAMP_S - second
    return 1 + (BURST - 1) * max(0.0, min(1.0, since_s / RAMP_S, left_s / RAMP_S)) if hour in hours else 1.0


def replay(hpa: Hpa, day: Day) -> Outcome:
    """Play a day. Pods count from when they are wanted, and answer once they are ready, all alike."""
    autoscaler = Autoscaler(hpa)
    first = min(max(round_up(day.load[0] / hpa.pod_rps, 1), hpa.min_pods), hpa.max_pods)
    # When each pod is ready, in ascending order, so the youngest are the last; and what one that was always ready
    # had answered by each step.
    pods, answered = [-inf] * first, [0.0]
    outside = pod_steps = most = changes = 0
    refused = 0.0
    for step, rps in enumerate(day.load):
        now_s = step * STEP_S
        if step in day.losses:
            lost = min(-(-bisect_right(pods, now_s) // NODES), day.node_pods)
            pods = pods[lost:] + [now_s + day.start_s] * lost
        if now_s % SYNC_S == 0:
            wanted = autoscaler.decide(now_s, len(pods), _metrics(hpa, day, pods, answered))
            changes += wanted != len(pods)
            pods[wanted:] = [now_s + day.start_s] * (wanted - len(pods))
        ready = bisect_right(pods, now_s)
        outside += rps > ready * day.objective_rps or step in day.failing
        refused += max(0.0, rps - ready * day.pod_rps) * STEP_S
        answered.append(answered[-1] + (min(rps / ready, day.pod_rps) * STEP_S if ready else 0.0))
        pod_steps += len(pods)
        most = max(most, len(pods))
    return Outcome(hpa, outside * STEP_S, round(pod_steps * STEP_S / HOUR_S, 1), most, changes, refused)


def _metrics(hpa: Hpa, day: Day, pods: Sequence[float], answered: Sequence[float]) -> tuple[Metric, Metric]:
    """Return CPU and requests/s as they can be read now. A pod is measured once it was ready for a whole window."""
    now_s = (len(answered) - 1) * STEP_S
    ready = bisect_right(pods, now_s)
    starting = len(pods) - ready
    cpu_rps, with_cpu = _read(now_s - CPU_AGE_S, CPU_WINDOW_S, pods, answered)
    rps, with_rate = _read(now_s - RATE_AGE_S, RATE_WINDOW_S, pods, answered)
    return (
        # The CPU of a pod that has just become ready is its start's, and is not looked at.
        Metric(cpu_rps / day.pod_rps * 100 / hpa.cpu_percent, with_cpu, unready=len(pods) - with_cpu),
        Metric(rps / hpa.pod_rps, with_rate, unready=starting, missing=ready - with_rate),
    )


def _read(end_s: int, window_s: int, pods: Sequence[float], answered: Sequence[float]) -> tuple[float, int]:
    """Return the mean requests/s of a pod in a window, and how many pods were ready for all of it."""
    begin_s = end_s - window_s
    if begin_s < 0:
        return 0.0, 0
    return (answered[end_s // STEP_S] - answered[begin_s // STEP_S]) / window_s, bisect_right(pods, begin_s)
