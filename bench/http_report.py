"""The report of a measurement over HTTP: what was found, its figures and plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hotplate.bench.answers import popular_complaint, popular_counts
from hotplate.bench.loadgen.capacity import Objective
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.loadgen.keys import RequestKeys
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import LAG_BOUND_US, Result
from hotplate.bench.options import HttpOptions
from hotplate.bench.statistics import Figure, mean, percentile, share
from hotplate.report import Curve, Plot, Row, format_value
from hotplate.stores.urls import redacted

# The most requests at a time in a sweep of batches, as of a job of Stream Analytics.
PARALLEL = 20

# The share of the most users/s that the recommended batch must reach.
NEAR = 0.9

# Percentiles of a report; the last is not in its first table.
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
HINT = "; give --store URL, so that its users are requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPlan:
    """What is to be measured, and the options that were read for it.

    With `find_max` the highest rate inside the `objective` is looked for first, from the load's own rate on, and the
    rounds are made at that; otherwise the objective only bounds errors. With `batches`, POSTs for so many of the `keys`
    each are made instead. With a `store` the responses that the load keeps as samples are compared with what it holds.
    """

    options: HttpOptions
    load: Load
    warmup_s: float
    objective: Objective
    batches: Sequence[int]
    keys: RequestKeys | None
    allowed_popular: float

    @property
    def parallel(self) -> int:
        """Batches at a time."""
        return min(PARALLEL, self.load.connections)

    def popular_complaint(self, results: Sequence[Result]) -> str | None:
        """Return why *results* did not measure lookups of users' lists, and what to do."""
        complaint = popular_complaint(results, self.allowed_popular)
        return complaint and complaint + ("" if self.options.store else HINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of a search, or of one size of batch: `at` is its rate or its size.

    `broken` says what it did not keep. `doubts` say why it did not measure the service; both may be.
    """

    at: float
    result: Result
    broken: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def inside(self) -> bool:
        """Whether the run is valid and keeps the objective."""
        return not self.doubts and not self.broken

    @property
    def unclear(self) -> bool:
        """Whether the generator was disturbed in a run that broke nothing."""
        return bool(self.doubts) and not self.broken

    @property
    def stopped(self) -> bool:
        """Whether it was ended early."""
        return self.result.interrupted

    def latency_us(self, percent: float) -> float:
        """Return a percentile of its answers."""
        return Histogram.of(self.result.latencies_s).percentiles_us([percent])[0]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        latencies = {f"{name}_us": self.latency_us(percent) for name, percent in PERCENTILES.items()}
        found = {"at": self.at, "inside": self.inside, "broken": self.broken, "doubts": self.doubts, **latencies}
        return found | {"ok_rate": self.result.ok_rate, "error_share": self.result.error_share}


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Pick the run of the highest rate inside the objective; None if none was."""
    return max((each for each in trials if each.inside), key=lambda each: each.at, default=None)


def first_outside(trials: Sequence[Trial]) -> Trial | None:
    """Pick the lowest rate above the highest inside that was outside; None if the search was stopped before."""
    best = highest(trials)
    above = [each for each in trials if not each.inside and (best is None or each.at > best.at)]
    lowest = min(above, key=lambda each: each.at, default=None)
    return None if lowest is None or lowest.stopped else lowest


def users_rate(trial: Trial) -> float:
    """Return the users/s of a size of batch."""
    return trial.at * trial.result.ok_rate


def knee(trials: Sequence[Trial]) -> Trial | None:
    """Pick the smallest good batch that gives 90 % of the most users/s; larger ones add latency and hardly more."""
    good = [each for each in trials if each.inside]
    most = max(map(users_rate, good), default=0.0)
    return min((each for each in good if users_rate(each) >= NEAR * most), key=lambda each: each.at, default=None)


class Sections:
    """The parts of a report on trials and rounds."""

    def __init__(self, plan: HttpPlan, trials: Sequence[Trial], rounds: Sequence[Result]) -> None:
        self._plan = plan
        self._trials = trials
        self._rounds = rounds
        self._subject = redacted(plan.load.url)
        self._best = None if plan.batches else highest(trials)
        self._popular = plan.popular_complaint([*rounds, *(each.result for each in trials if plan.batches)])

    @property
    def failures(self) -> list[str]:
        """Why not everything was measured."""
        if not self._rounds and not self._trials:
            return ["nothing was measured"]
        named = [(f"round {number}", each.invalid_reasons) for number, each in enumerate(self._rounds, 1)]
        named += [(f"batch {each.at:,}", list(each.doubts)) for each in self._trials if self._plan.batches]
        return [f"{name}: {reason}" for name, reasons in named for reason in reasons]

    @property
    def broken(self) -> list[str]:
        """What was measured and is not as it should be, the gravest first."""
        found = [self._popular] if self._popular else []
        if self._plan.batches:
            of_sizes = [f"batch {each.at:,}: {reason}" for each in self._trials for reason in each.broken]
            return found + [each for each in of_sizes if "popular list" not in each or not self._popular]
        due, good = (sum(getattr(each, name) for each in self._rounds) for name in ("due", "ok"))
        found += self._plan.objective.errors_beyond((due - good) / max(1, due))
        if self._trials and not self._best:
            ended = first_outside(self._trials)
            why = f": at {ended.at:,.4g} requests/s {' and '.join(ended.broken or ended.doubts)}" if ended else ""
            found.append(f"no rate was inside the objective {self._plan.objective}{why}")
        return found

    @property
    def sentence(self) -> str:
        """The answer."""
        if self.failures:
            return "These figures do not measure the service; see below."
        if self._popular:
            return "The users' own lists were not measured: the service gave the popular list instead."
        if self._plan.batches:
            return self._batch_sentence()
        return self._round_sentence() if self._rounds else f"No rate is inside {self._plan.objective}."

    def _batch_sentence(self) -> str:
        best = knee(self._trials)
        if best is None:
            return "No size of batch was served without errors; give fewer --connections, or more workers."
        rate, p50 = format_value(users_rate(best), "users/s"), format_value(best.latency_us(50), "us")
        return f"The smallest batch that gives 90 % of the most users/s is {best.at:,.0f}: {rate}, p50 {p50}."

    def _round_sentence(self) -> str:
        shown = f"{format_value(self._answers.value or 0)} good answers/s"
        if self._plan.load.rate is None:
            connections = self._plan.load.connections
            return f"{connections} connections in a closed loop get {shown}; its latencies hide waits: use --rate."
        named = self._plan.objective.percentile
        found = percentile(self._rounds, self._plan.objective.percent)
        latency = f"not known ({found.note})" if found.value is None else format_value(found.value, "us")
        if self._best:
            least = "at least " if self._limited else ""
            rate = f"{least}{self._best.at:,.0f} requests/s"
            return f"The highest rate inside {self._plan.objective} is {rate}; there {named} is {latency}."
        return f"{named} is {latency} at {shown}."

    @property
    def _answers(self) -> Figure:
        return mean([each.ok_rate for each in self._rounds])

    @property
    def _limited(self) -> str:
        """Why a search ended without an answer of the service's."""
        ended = first_outside(self._trials)
        return " and ".join(ended.doubts) if ended and ended.unclear else ""

    @property
    def rows(self) -> list[Row]:
        """The figures: none of latencies where popular lists were measured, and of a closed loop none in the table."""
        if self._plan.batches:
            return [row for each in self._trials for row in self._batch_rows(each)]
        found = [] if self._popular or not self._rounds else self._latency_rows()
        if self._best and not self._popular:
            at_least = "at least" if self._limited else ""
            found.insert(0, Row(self._subject, "highest rate", "/s", self._best.at, note=at_least))
        if self._rounds:
            if not self._popular:
                found.append(self._answers.row(self._subject, "rate", "/s"))
            due = [each.due for each in self._rounds]
            bad = [each.due - each.ok for each in self._rounds]
            found.append(share(bad, due).row(self._subject, "errors and drops", "share"))
            found += self._popular_row(self._subject, self._rounds)
        return found

    def _latency_rows(self) -> list[Row]:
        open_loop = self._plan.load.rate is not None
        names = dict(PERCENTILES) | {self._plan.objective.percentile: self._plan.objective.percent}
        found = [
            percentile(self._rounds, percent).row(self._subject, name, "us", main=open_loop and name != "p99.9")
            for name, percent in sorted(names.items(), key=lambda each: each[1])
        ]
        average_us = Histogram.merged(Histogram.of(each.latencies_s) for each in self._rounds).mean_us
        return [*found, Row(self._subject, "mean", "us", average_us, main=False)]

    def _popular_row(self, subject: str, results: Sequence[Result]) -> list[Row]:
        parts, wholes = zip(*map(popular_counts, results), strict=True)
        return [share(parts, wholes).row(subject, "popular lists", "share")] if sum(wholes) else []

    def _batch_rows(self, trial: Trial) -> list[Row]:
        subject, results = f"batch of {trial.at:,.0f}", [trial.result]
        found = [Row(subject, "users", "/s", users_rate(trial))] if not self._popular else []
        if not self._popular:
            found += [
                percentile(results, percent).row(subject, name, "us", main=name != "p99.9")
                for name, percent in PERCENTILES.items()
            ]
        found.append(share([trial.result.due - trial.result.ok], [trial.result.due]).row(subject, "errors", "share"))
        return found + self._popular_row(subject, results)

    @property
    def notes(self) -> list[str]:
        """What qualifies the figures."""
        found = []
        if self._limited:
            found.append(f"The search ended because of the generator, and not of the service: {self._limited}.")
        lags = [each.lags_s for each in self._rounds if each.requested_rate is not None]
        late_us = Histogram.merged(map(Histogram.of, lags)).percentiles_us([99])[0]
        if late_us > LAG_BOUND_US:
            late = f"The generator itself was up to {format_value(late_us, 'us')} late (p99)"
            found.append(f"{late}; that is part of the latencies.")
        if self._plan.batches:
            found.append(
                f"{self._plan.parallel} batches at a time, in a closed loop; a latency is from when a batch was sent."
            )
        return found

    @property
    def plots(self) -> list[Plot]:
        """The latencies over percentiles and time, over rates, or over sizes of batch."""
        if self._popular or not (self._rounds or self._trials):
            return []
        if self._plan.batches:
            return self._batch_plots()
        of_search = [self._search_plot()] if self._trials else []
        of_rounds = [_spectrum(self._rounds), _seconds(self._rounds)] if self._rounds and self._plan.load.rate else []
        return of_search + of_rounds

    def _search_plot(self) -> Plot:
        tried = sorted(self._trials, key=lambda each: each.at)
        named, percent = self._plan.objective.percentile, self._plan.objective.percent
        latencies_us = tuple(each.latency_us(percent) or None for each in tried)
        curve = Curve(named, tuple(each.at for each in tried), latencies_us)
        marks = {self._best.at: "highest inside"} if self._best else {}
        title = f"{named} over offered load"
        return Plot(title, "requests/s", named, (curve,), y_unit="us", log_y=True, points=True, marks=marks)

    def _batch_plots(self) -> list[Plot]:
        sizes = tuple(each.at for each in self._trials)
        ticks = {each: f"{each:,.0f}" for each in sizes}
        curves = tuple(
            Curve(name, sizes, tuple(each.latency_us(PERCENTILES[name]) or None for each in self._trials))
            for name in ("p50", "p99")
        )
        rates = Curve("users/s", sizes, tuple(map(users_rate, self._trials)))
        label = "users in a batch"
        common: dict[str, Any] = {"log_x": len(sizes) > 1, "points": True, "ticks": ticks}
        return [
            Plot("Latency over batch size", label, "latency", curves, y_unit="us", log_y=True, **common),
            Plot("Users/s over batch size", label, "users/s", (rates,), **common),
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """What only programs read: single rounds with their histograms, and the trials."""
        found: dict[str, Any] = {"rounds": [each.to_json() for each in self._rounds]}
        trials = [each.to_json() for each in self._trials]
        if self._plan.batches:
            best = knee(self._trials)
            return found | {"sweep": {"parallel": self._plan.parallel, "knee": best and best.at, "points": trials}}
        if trials:
            best = self._best
            limits = {"highest": best and best.at, "at_least": self._limited, "objective": str(self._plan.objective)}
            found["search"] = limits | {"points": trials}
        return found


def _spectrum(rounds: Sequence[Result]) -> Plot:
    """Draw all answers pooled, over how many of them were slower."""
    spectrum = Histogram.merged(Histogram.of(each.latencies_s) for each in rounds).spectrum()
    points = [(1 / (1 - percent / 100), us) for percent, us in spectrum if percent < 100]
    curve = Curve("all rounds", tuple(x for x, _ in points), tuple(us for _, us in points))
    names = {2.0: "p50", 10.0: "p90", 100.0: "p99", 1_000.0: "p99.9", 10_000.0: "p99.99", 100_000.0: "p99.999"}
    ticks = {x: name for x, name in names.items() if x <= max((x for x, _ in points), default=2) * 1.01}
    caption = "All answers of all rounds, from when each request was due."
    return Plot(
        "Latency by percentile", "percentile", "latency", (curve,), y_unit="us", log_x=True, log_y=True, ticks=ticks,
        caption=caption,
    )  # fmt: skip


def _seconds(rounds: Sequence[Result]) -> Plot:
    """Draw the median and the longest latency of each second, round after round."""
    seconds = [Histogram.of(second.latencies_s) for each in rounds for second in each.seconds]
    x = tuple(float(number) for number in range(1, len(seconds) + 1))
    curves = tuple(
        Curve(name, x, tuple(each.percentiles_us([percent])[0] or None for each in seconds))
        for name, percent in (("p50", 50), ("longest", 100))
    )
    label = "second, all rounds"
    return Plot("Latency by second", label, "latency", curves, y_unit="us", log_y=True, points=len(x) < 30)
