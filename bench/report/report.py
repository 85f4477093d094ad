"""What a measurement leaves behind: one JSON object with all results, the machine and the raw histograms."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hotplate.bench import machine
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.capacity import PERCENTS
from hotplate.bench.loadgen.histogram import ENOUGH_SAMPLES, Histogram
from hotplate.bench.loadgen.result import Result
from hotplate.bench.measured import MIN_PAIRS, Measured, geometric, interval
from hotplate.bench.report.text import APART, NOTHING, Cell, Footnotes, Summary, format_us, latency_cell
from hotplate.stores.errors import reason_of

FORMAT = 2
RATE = "rate"
ERRORS = "errors"

# What rounds are summed up by: latencies in microseconds, and good responses per second.
METRICS = (*PERCENTS, RATE)

# How the name of a series ends whose reads had a publish beside them.
WHILE_WRITTEN = ", while lists are written"

# Fields of a round that only the file holds.
LONG_FIELDS = {"histogram", "sent_histogram", "lag_histogram", "seconds"}

# What of a complaint differs from one round to the next.
NUMBERS = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, slots=True)
class Round:
    """One run of a series: the values of `Result.to_json`, and its histograms."""

    facts: Mapping[str, Any]
    histogram: Histogram
    sent_histogram: Histogram | None = None
    """From when requests were sent; None of older reports, whose valid rounds were never much later than planned."""

    @property
    def valid(self) -> bool:
        """Whether it measured the service, and not the generator."""
        return not self.facts["invalid_reasons"]

    @property
    def lower(self) -> Histogram:
        """The lower bound of the latencies."""
        return self.sent_histogram or self.histogram

    def value(self, metric: str, *, sent: bool = False) -> float:
        """Return one of METRICS, or the share of errors; latencies from when due, or from when *sent*."""
        if metric == RATE:
            return float(self.facts["ok_rate"])
        if metric == ERRORS:
            return float(self.facts["error_share"])
        return (self.lower if sent else self.histogram).percentiles_us([PERCENTS[metric]])[0]


@dataclass(frozen=True)
class Series:
    """The rounds of one subject, in order; the n-th rounds of all series of a report were made side by side."""

    name: str
    rounds: tuple[Round, ...]

    @cached_property
    def histogram(self) -> Histogram:
        """All rounds together."""
        return Histogram.merged(each.histogram for each in self.rounds)

    @property
    def invalid_reasons(self) -> list[str]:
        """Why its rounds are invalid; empty if all are valid."""
        return [
            f"round {number}: {reason}"
            for number, each in enumerate(self.rounds, 1)
            for reason in each.facts["invalid_reasons"]
        ]

    @cached_property
    def lower(self) -> Histogram:
        """All rounds together, by the lower bound of their latencies."""
        return Histogram.merged(each.lower for each in self.rounds)

    def values(self, metric: str, *, sent: bool = False) -> list[float]:
        """Return one metric, round by round; latencies from when due, or from when *sent*."""
        return [each.value(metric, sent=sent) for each in self.rounds]

    @property
    def at_least(self) -> str:
        """Why its rate is only a lower bound of what the server answers; empty if it is not."""
        return next((each.facts["waiting"] for each in self.rounds if each.facts.get("at_least")), "")

    def measured(self, metric: str) -> Measured:
        """Return a metric, or the share of errors, as it is compared with another's; nothing if a round is invalid."""
        if reasons := self.invalid_reasons:
            return Measured((), (), reasons[0])
        if metric == RATE and self.at_least:
            return Measured((), (), self.at_least)
        facts = [each.facts for each in self.rounds]
        late = max((one for one in facts if one.get("disturbance")), key=lambda one: one["lag_us"]["p99"], default={})
        return Measured(
            self.values(metric),
            self.values(metric, sent=True),
            late.get("disturbance", ""),
            max((one.get("stolen") or 0.0 for one in facts), default=0.0),
            shares=metric == ERRORS,
        )

    def latency(self, metric: str) -> Measured:
        """Return a percentile as it is compared with another's, where enough answers lie beyond it."""
        if len(self.rounds) < MIN_PAIRS or self.summary[metric]["enough_samples"]:
            return self.measured(metric)
        return Measured((), (), f"fewer than {ENOUGH_SAMPLES} answers lie beyond it")

    def cell(self, percentile: str, footnotes: Footnotes) -> Cell:
        """Write a percentile for the top of a report; a dash if its bounds leave it open."""
        found = self.summary[percentile]
        least_us, most_us = found["sent"]["mean"], found["mean"]
        if most_us > APART * least_us:
            between = f"{self.name}: {percentile} lies between {format_us(least_us)} and {format_us(most_us)}"
            return footnotes.dash(f"{between}, because the generator was late")
        return latency_cell(found)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Each metric over all rounds, and of five rounds or more the 95 % interval of its mean over rounds.

        Of latencies the mean is the geometric one; they have their lower bound as `sent`.
        """
        summary = dict[str, Any]()
        for metric in METRICS:
            enough = metric in (RATE, "max") or self.histogram.has_enough_samples(PERCENTS[metric])
            summary[metric] = self._summed(metric, sent=False) | {"enough_samples": enough}
            if metric != RATE:
                summary[metric]["sent"] = self._summed(metric, sent=True)
        return summary

    def _summed(self, metric: str, *, sent: bool) -> dict[str, Any]:
        values, pooled = self.values(metric, sent=sent), self.lower if sent else self.histogram
        found = interval(values) if metric == RATE else geometric(values)
        bounds = found if len(values) >= MIN_PAIRS else None
        return {
            "pooled": None if metric == RATE else pooled.percentiles_us([PERCENTS[metric]])[0],
            "mean": found.mean if found else sum(values) / len(values),
            "low": bounds and bounds.low,
            "high": bounds and bounds.high,
        }

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "name": self.name,
            "summary": self.summary if self.rounds else None,
            "valid": not self.invalid_reasons,
            "invalid_reasons": self.invalid_reasons,
            "rounds": [each.facts for each in self.rounds],
        }


def series(name: str, results: Iterable[Result]) -> Series:
    """Make a series of the results of its rounds."""
    rounds = (
        Round(each.to_json(), Histogram.of(each.latencies_s), Histogram.of(each.sent_latencies_s)) for each in results
    )
    return Series(name, tuple(rounds))


def counted(reasons: Iterable[str]) -> list[str]:
    """Join complaints that differ in their numbers only, or in whom they are of, into the first and a count."""
    alike = dict[str, list[str]]()
    for each in reasons:
        alike.setdefault(NUMBERS.sub("#", each.partition(": ")[2] or each), []).append(each)
    return [first + (f" (and {len(more)} more like it)" if more else "") for first, *more in alike.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of one measurement; `extra` holds what only some kinds have: a search, a sweep, a check of answers."""

    kind: str
    configuration: Mapping[str, Any]
    series: tuple[Series, ...]
    interrupted: bool = False
    failures: tuple[str, ...] = ()
    """What could not be measured, besides invalid rounds."""

    broken: tuple[str, ...] = ()
    """What was measured and is not as it should be: errors, wrong lists, no rate inside the objective."""

    summary: Summary = NOTHING
    extra: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=machine.describe)

    @property
    def invalid_reasons(self) -> list[str]:
        """Why its rounds are invalid, round by round; empty if all are valid."""
        several = len(self.series) > 1
        return [
            f"{each.name}, {reason}" if several else reason for each in self.series for reason in each.invalid_reasons
        ]

    @property
    def complaints(self) -> list[str]:
        """What a reader has to look out for, besides what the summary's sentence says."""
        stopped = ["it was stopped before its end"] if self.interrupted else []
        found = [*counted(self.invalid_reasons), *self.failures, *self.broken, *stopped]
        return [each for each in found if each not in self.summary.sentence]

    @property
    def measured(self) -> bool:
        """Whether it came to its end with valid rounds, good or bad."""
        return not (self.interrupted or self.invalid_reasons or self.failures)

    @property
    def valid(self) -> bool:
        """Whether all was measured, and is as it should be."""
        return self.measured and not self.broken

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "summary": asdict(self.summary),
            "machine": self.machine,
            "configuration": self.configuration,
            "interrupted": self.interrupted,
            "valid": self.valid,
            "failures": list(self.failures),
            "broken": list(self.broken),
            "series": [each.to_json() for each in self.series],
            **self.extra,
        }

    def brief(self) -> dict[str, Any]:
        """Return it without histograms and seconds, which the file holds."""
        brief = self.to_json()
        for each in brief["series"]:
            each["rounds"] = [
                {name: value for name, value in one.items() if name not in LONG_FIELDS} for one in each["rounds"]
            ]
        return brief


def read(path: Path) -> Report:
    """Read what `hotplate.bench.report.page.keep` wrote. Raises BenchMisused for another file, BenchFailed for none."""
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != FORMAT:
            raise BenchMisused(f"{path} has format {facts['format']}, and this reads {FORMAT}")
        return Report(
            kind=facts["kind"],
            configuration=facts["configuration"],
            series=tuple(Series(each["name"], tuple(map(_read_round, each["rounds"]))) for each in facts["series"]),
            interrupted=facts["interrupted"],
            failures=tuple(facts["failures"]),
            broken=tuple(facts.get("broken", ())),
            machine=facts["machine"],
        )
    except FileNotFoundError as error:
        raise BenchFailed(
            f"{path} does not exist; name the .json of a report, which `hotplate bench http URL --out NAME` writes"
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BenchMisused(f"{path} is not a report of hotplate bench: {reason_of(error)}") from error


def _read_round(facts: Mapping[str, Any]) -> Round:
    sent = facts.get("sent_histogram")
    return Round(facts, Histogram.decoded(facts["histogram"]), sent and Histogram.decoded(sent))
