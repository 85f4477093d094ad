"""The results of a sweep, search by search and trial by trial, and how a report shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hotplate.bench.loadgen.result import LAG_BOUND_US
from hotplate.bench.report.plots import BAD, FAINT, LINES, Frames, latency_scale, plot, rate_axis
from hotplate.bench.report.report import Report
from hotplate.bench.report.text import Cell, Footnotes, Summary, figure, paragraphs

# What ends a search that found what it looked for.
RU = "RU/s"
# A level was spent if so much of it was.
SPENT = 0.95
# The mark of results that did not come from Azure.
LABEL = "local emulator, not Azure"

METHOD = """
Open loop, evenly spaced, one attempt a request: a 429 is counted, never retried. Retries would hide throttling in the
latencies' tail and leave the throughput as it is.

Each trial begins with a second of the clock and lasts whole ones, as budgets are kept by the second. The best rate is
the highest one inside the objective, to 2 %.

Items of 1 KB are read by id, one after the other. They lie evenly over the partitions of a container that was created
with the highest level, so nothing splits on the way. Charges are those of the responses' headers.
"""
EMULATED = (
    "Requests went to an emulator, which charges by the same coefficients as the planner. That they agree shows "
    "nothing of Azure, and the latencies are not Azure's."
)
TOP = "accepted", "predicted", "cost of a read"
KNEE = "below it every read is answered. Beyond it the rest is refused, and no more are answered."
LATE = "the generator was late there (lag p99 above 1 ms), so the latencies at the knee are not the store's."


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate of requests a second that was tried, `ok_rate` of which were answered well."""

    rate: float
    ok_rate: float
    spent_ru: float
    """A second."""

    charge_ru: float
    """Of one good answer, by its header."""

    throttled: float
    failed: float
    p50_us: float
    p99_us: float
    lag_p99_us: float
    invalid_reasons: tuple[str, ...]
    violations: tuple[str, ...]
    stopped: bool

    @property
    def inside(self) -> bool:
        """See `hotplate.bench.loadgen.capacity.Attempted`."""
        return not self.unclear and not self.violations and not self.stopped

    @property
    def unclear(self) -> bool:
        """See `hotplate.bench.loadgen.capacity.Attempted`."""
        return bool(self.invalid_reasons) and not self.violations

    @property
    def late(self) -> bool:
        """Whether the generator was too late for the latencies to mean anything; the rates are still valid."""
        return self.lag_p99_us > LAG_BOUND_US

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"inside": self.inside, "late": self.late}


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial inside the objective; None if there was not one."""
    return max((each for each in trials if each.inside), key=lambda each: each.rate, default=None)


@dataclass(frozen=True, slots=True)
class Finding:
    """One level of RU/s with the reads a second that the planner predicts, its trials, and what ended the search."""

    ru: int
    predicted: float
    trials: tuple[Trial, ...]
    limit: str

    @property
    def best(self) -> Trial | None:
        """The best trial inside the objective."""
        return highest(self.trials)

    @property
    def spent(self) -> bool:
        """Whether the RU/s ended the search, and the best rate spends them."""
        return self.limit == RU and self.best is not None and self.best.spent_ru >= SPENT * self.ru

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        best = self.best
        return {
            "ru": self.ru,
            "predicted": self.predicted,
            "best": best and best.to_json(),
            "off": best and best.ok_rate / self.predicted - 1,
            "limit": self.limit,
            "spent": self.spent,
            "trials": [each.to_json() for each in self.trials],
        }


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All that a sweep measured; lives until its report is written."""

    configuration: Mapping[str, Any]
    subject: str
    """The account, without what may be secret; LABEL if it is emulated."""

    found: tuple[Finding, ...]
    interrupted: bool

    @property
    def valid(self) -> bool:
        """Whether it came to its end and each search spent what could be spent."""
        return not self.interrupted and bool(self.found) and all(each.spent for each in self.found)

    @property
    def report(self) -> Report:
        """The report, with all of it as plain values."""
        emulated = self.subject == LABEL
        found = [each.to_json() for each in self.found]
        return Report(
            kind="ru",
            configuration=self.configuration,
            series=(),
            interrupted=self.interrupted,
            failures=tuple(_not_spent(each) for each in found if not each["spent"]),
            extra={
                "subject": self.subject,
                "method": [*([EMULATED] if emulated else []), *paragraphs(METHOD)],
                "ru": {"label": LABEL if emulated else None, "found": found},
            },
            summary=_summary(self.subject, found),
        )


def _summary(subject: str, found: Sequence[Mapping[str, Any]]) -> Summary:
    """Say what the highest level accepted, and three figures of each search."""
    footnotes, rows = Footnotes(), list[tuple[Cell, ...]]()
    for each in found:
        best, predicted = each["best"], f"{each['predicted']:,.1f}/s"
        name = f"{each['ru']:,} RU/s"
        if best is None:
            rows.append((name, footnotes.dash(_not_spent(each)), predicted, footnotes.dash(_not_spent(each))))
        else:
            accepted = f"{best['ok_rate']:,.1f}/s", "" if each["spent"] else "at least"
            rows.append((name, accepted, (predicted, f"off by {each['off']:+.1%}"), f"{best['charge_ru']:.2f} RU"))
    spent = max((each for each in found if each["spent"]), key=lambda each: float(each["ru"]), default=None)
    sentence = "No RU/s were used up, so it is not known what they accept."
    if spent is not None:
        where = f"a {subject}" if subject == LABEL else subject
        than = f"{abs(spent['off']):.1%} {'less' if spent['off'] < 0 else 'more'} than predicted"
        accepted_s = f"{spent['best']['ok_rate']:,.0f} reads/s"
        sentence = f"{spent['ru']:,} RU/s accept {accepted_s} on {where}, {than}."
    return Summary(sentence, TOP, tuple(rows), footnotes.lines)


def _not_spent(one: Mapping[str, Any]) -> str:
    return f"{one['ru']:,} RU/s were not spent, because the search was ended by: {one['limit']}"


def knee(found: Mapping[str, Any]) -> str:
    """Draw the knee of a search, and say what that is."""
    late = found["best"] and found["best"]["late"]
    return figure(_knee_plot(found), f"The knee at {found['ru']:,} RU/s: {LATE if late else KNEE}")


@plot(1, 1, high=1.1)
def _knee_plot(frames: Frames, found: Mapping[str, Any]) -> None:
    """Draw one level's trials over the rate that was offered: latencies above, the share of 429s below."""
    above, below = frames
    points = sorted((each for each in found["trials"] if not each["invalid_reasons"]), key=lambda each: each["rate"])
    at = [each["rate"] for each in points]
    for name, colour in (("p50", LINES[0]), ("p99", LINES[1])):
        above.plot(at, [each[f"{name}_us"] for each in points], color=colour, marker="o", label=name)
    latency_scale(above)
    below.plot(at, [100 * each["throttled"] for each in points], color=BAD, marker="o", label="429s, measured")
    drawn = np.linspace(0, max(at, default=1.0), 200)[1:]
    expected = 100 * np.maximum(0, 1 - found["predicted"] / drawn)
    below.plot(drawn, expected, color=FAINT, label="429s, if all partitions refuse alike")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter("{x:g} %")
    rate_axis(below, "reads/s that fell due")
    if found["best"]:
        for axes in frames:
            axes.axvline(found["best"]["rate"], color=LINES[3], linewidth=1)
