"""The runs of a measurement over HTTP, judged by its objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hotplate.bench.http_plan import HttpPlan
from hotplate.bench.lists import CheckResult
from hotplate.bench.loadgen.result import Result
from hotplate.bench.objective import PERCENTS, Objective
from hotplate.bench.search import first_outside, highest
from hotplate.bench.statistics import percentile
from hotplate.bench.trials import Trial


@dataclass(frozen=True, slots=True)
class HttpRuns:
    """All runs, and the check of kept responses; without a store, nothing is checked."""

    plan: HttpPlan
    trials: tuple[Trial, ...]
    rounds: tuple[Result, ...]
    checked: CheckResult | None
    interrupted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What rounds at one rate show, and the search for that rate, if there was one.

    best     the trial at the highest rate inside the objective; None without a search, or if its rounds were outside
    limit    why the rate may be higher, as the load generator ended the search; empty if the service did
    broken   bounds that the service did not keep in the rounds, or at any rate
    late     bounds that were broken by the lateness of the load generator
    unknown  bounded percentiles with too few answers, and why
    """

    best: Trial | None
    limit: str
    broken: Sequence[str]
    late: Sequence[str]
    unknown: Mapping[str, str]


def judge(runs: HttpRuns) -> Verdict:
    """Judge rounds at one rate by the objective, and the search for that rate."""
    objective = runs.plan.objective
    unknown = _unknown_percentiles(objective, runs.rounds) if runs.rounds else {}
    known = {name: bound_us for name, bound_us in objective.latency_us.items() if name not in unknown}
    latency = replace(objective, latency_us=known).judge_latency(runs.rounds)
    broken = [*objective.errors_beyond(runs.rounds), *latency.broken]

    best = highest(runs.trials)
    is_search_stopped = runs.interrupted and not runs.rounds
    outside = None if is_search_stopped else first_outside(runs.trials)
    if best:
        broken = [f"the rounds at {best.offered:,.4g} requests/s: {reason}" for reason in broken]
    elif outside:
        reasons = " and ".join(outside.broken or outside.doubts)
        broken.append(f"no rate was inside the objective {objective}: at {outside.offered:,.4g} requests/s {reasons}")

    return Verdict(
        best=None if broken else best,
        limit=outside.doubts[0] if outside and outside.is_unclear else "",
        broken=broken,
        late=latency.doubts,
        unknown=unknown,
    )


def _unknown_percentiles(objective: Objective, rounds: Sequence[Result]) -> dict[str, str]:
    figures = {name: percentile(rounds, PERCENTS[name]) for name in objective.latency_us}
    return {name: figure.note for name, figure in figures.items() if figure.value is None}
