"""The objective of a run over HTTP: bounds on percentiles of the latency and on the share of errors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from hotplate.base.report import rounded
from hotplate.bench.errors import BenchMisused
from hotplate.bench.figure_names import P99
from hotplate.bench.loadgen.load import OK, REDIRECT, STATUS
from hotplate.bench.loadgen.result import Result, lag_us, latency_us
from hotplate.bench.measure.statistics import ERRORS, PERCENTS, error_share
from hotplate.bench.options import parse_seconds, parse_share
from hotplate.bench.verdict import Finding, Gravity, findings_of

USUAL_ERRORS = 0.001
# A search leaves out pauses of the machine that are not more frequent, and one of a few seconds.
PAUSE_EVERY_S = 5
LEAST_S = 3
# Share of the seconds that must be without a pause.
CALM = 1 / 3
# Last latencies below this share of the p90 of a pause show that a queue is being served.
FALLING = 0.9


@dataclass(frozen=True, slots=True)
class Objective:
    """Bounds on percentiles, in microseconds, and on the share of errors."""

    latency_us: Mapping[str, float]
    errors: float = USUAL_ERRORS

    @property
    def percentile(self) -> str:
        """The first bounded percentile, or p99."""
        return next(iter(self.latency_us), P99)

    def judge(self, result: Result) -> list[Finding]:
        """Judge errors, latencies and validity of one run of a search, without seconds that were disturbed."""
        calm = self.without_pauses([result])
        invalid = findings_of(Gravity.UNMEASURED, calm[0].invalid_reasons)
        return [*self.errors_beyond([result]), *invalid, *self.judge_latency(calm)]

    def without_pauses(self, results: Sequence[Result]) -> list[Result]:
        """Return the results of a search without the seconds of pauses, which are beyond the objective.

        At a rate that a service cannot serve, its queue grows until the end. After a pause of the machine, or a garbage
        collection, the queue is served, and latencies fall. All seconds are kept if all together are inside, if there
        are more pauses than one in PAUSE_EVERY_S, or if few seconds would remain.
        """
        if not self.judge_latency(results):
            return list(results)

        seconds = [result.only([number]) for result in results for number in range(len(result.seconds))]
        is_calm = [not self.judge_latency([second]) for second in seconds]
        if not self._are_pauses(is_calm, seconds):
            return list(results)
        calm = iter(is_calm)
        return [result.only([number for number in range(len(result.seconds)) if next(calm)]) for result in results]

    def _are_pauses(self, is_calm: Sequence[bool], seconds: Sequence[Result]) -> bool:
        """Return whether the *seconds* that are not calm are rare pauses, after which latencies fall.

        If the last second is not calm, a pause has just begun if its median is inside, and latencies fall if those of
        its last tenth are below most of the pause.
        """
        pauses = [list(run) for calm, run in groupby(range(len(seconds)), is_calm.__getitem__) if not calm]
        most_pauses = max(len(seconds) // PAUSE_EVERY_S, len(seconds) >= LEAST_S)
        if len(pauses) > most_pauses or sum(is_calm) < CALM * len(seconds):
            return False
        if is_calm[-1]:
            return True

        last_s = seconds[-1].latencies_s
        end_us = 1e6 * float(np.median(last_s[-max(1, len(last_s) // 10) :]))
        falling_us = FALLING * latency_us([seconds[number] for number in pauses[-1]], 90)
        is_inside = latency_us(seconds[-1:], 50) <= min(self.latency_us.values())
        return is_inside or end_us <= falling_us

    def judge_latency(self, results: Sequence[Result]) -> list[Finding]:
        """Compare the percentiles of all results together with their bounds.

        A percentile beyond its bound is outside. It is only unmeasured if the same percentile of the load generator's
        delays, with which it sent requests after they were due, is all of the excess, or more than half of the value.
        """
        findings = list[Finding]()
        for name, bound_us in self.latency_us.items():
            value_us = latency_us(results, PERCENTS[name])
            late_us = lag_us(results, PERCENTS[name])
            if value_us <= bound_us:
                continue

            beyond = f"{name} {format_ms(value_us)}, bound {format_bound(bound_us)}"
            if late_us >= min(value_us / 2, value_us - bound_us):
                late = f"{beyond}, but the generator itself was {format_ms(late_us)} late"
                findings.append(Finding(Gravity.UNMEASURED, late))
            else:
                findings.append(Finding(Gravity.OUTSIDE, beyond))
        return findings

    def errors_beyond(self, results: Sequence[Result]) -> list[Finding]:
        """Return a finding if too large a share of all requests failed, with the kinds of errors and statuses."""
        share = error_share(results).value or 0.0
        if share <= self.errors:
            return []
        kinds = Counter[str]()
        for result in results:
            kinds.update({kind: count for kind, count in result.errors.items() if kind not in {STATUS, REDIRECT}})
            kinds.update({f"status {status}": count for status, count in result.statuses.items() if status != OK})
            kinds["dropped"] += result.dropped
        named = ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common() if count)
        text = f"{share:.2%} of the requests got no good answer ({named}), bound {self.errors:.2%}"
        return [Finding(Gravity.ERRORS, text)]

    def __str__(self) -> str:
        bounds = [f"{name} ≤ {format_bound(bound_us)}" for name, bound_us in self.latency_us.items()]
        return ", ".join([*bounds, f"errors ≤ {100 * self.errors:.3g} %"])


def format_ms(us: float) -> str:
    """Format a latency in µs as in the table."""
    return f"{rounded(us / 1000)} ms"


def format_bound(us: float) -> str:
    """Format a bound in µs as it was given."""
    return f"{us / 1000:g} ms"


def parse_objective(text: str) -> Objective:
    """Parse an objective, bounds for percentiles of the latency and for the share of errors, as `p99=5ms,errors=0.1%`.

    The bound on errors is 0.1 % by default. Raises BenchMisused.
    """
    latency_us = dict[str, float]()
    errors = USUAL_ERRORS
    for part in text.split(","):
        name, equals, bound = part.strip().partition("=")
        if not equals or name not in {*PERCENTS, ERRORS}:
            raise BenchMisused(
                f"{part.strip()!r} is not a part of an objective; write for example p99=5ms,errors=0.1%, with bounds "
                f"for any of {', '.join(PERCENTS)} and {ERRORS}"
            )

        if name == ERRORS:
            errors = parse_share(bound)
        else:
            latency_us[name] = parse_seconds(bound) * 1e6
    return Objective(latency_us, errors)
