"""The results of a sweep, trial by trial, level by level and effect by effect, and how a report shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.loadgen.result import LAG_BOUND_US
from bench.report.plots import BAD, FAINT, LINES, Frames, latency_scale, plot, rate_axis
from bench.report.report import Report
from bench.report.text import escaped, format_us, paragraphs, section, table
from bench.ru.sandbox import Items
from stores.cosmos.charges import KB

# What ends a search that found what it looked for.
RU = "RU/s"
# The share of a level that must have been spent for it to count as such.
SPENT = 0.95
# What results are marked with that did not come from Azure.
LABEL = "local emulator, not Azure"
NONE = "-"

LEVEL_HEADINGS = (
    "RU/s", "read", "costs", "accepted", "by arithmetic", "off by", "spent", "p50", "p99", "429s", "per 100 RU/s",
)  # fmt: skip
EFFECT_HEADINGS = ("effect", "inputs of the prediction", "RU/s", "best rate", "predicted RU/s for it", "off by")

METHOD = """
Open loop, evenly spaced, one attempt a request: a 429 is counted, never retried. Retries would hide throttling in the
latencies' tail and leave the throughput as it is.

Each trial begins with a second of the clock and lasts whole ones, as budgets are kept by the second. The best rate is
the highest one inside the objective, to 2 %.

Items are read by id, in turn, and lie evenly over the partitions of a container that was created with the highest
level, so that nothing splits on the way. Charges are those of the responses' headers.
"""
EMULATED = (
    "Requests went to an emulator, which charges by the same coefficients as the planner. That they agree shows "
    "nothing of Azure, and the latencies are not Azure's."
)
LEVELS = (
    "Accepted: the reads a second that were not refused, at the highest rate inside the objective; by arithmetic: RU/s "
    "÷ RU a read. Spent: RU that answers were charged with at that rate, of those provisioned."
)
KNEES = "Below the knee every read is answered; beyond it the rest is refused, and the answered ones are no more."
EFFECTS = (
    "Each by itself. The planner predicts how many RU/s the best rate needs, and this is compared with what the "
    "container had."
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate that was tried; `rate` is of users' requests, and `ok_rate` of them a second were answered well."""

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
        """See `bench.loadgen.capacity.Attempted`."""
        return not self.unclear and not self.violations and not self.stopped

    @property
    def unclear(self) -> bool:
        """See `bench.loadgen.capacity.Attempted`."""
        return bool(self.invalid_reasons) and not self.violations

    @property
    def late(self) -> bool:
        """Whether the generator was too late for the latencies to mean anything; the rates are still valid."""
        return self.lag_p99_us > LAG_BOUND_US

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"inside": self.inside, "late": self.late}


def highest(trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial inside the objective; None where none was."""
    return max((each for each in trials if each.inside), key=lambda each: each.rate, default=None)


@dataclass(frozen=True, slots=True)
class Level:
    """A level of RU/s with the trials of its search."""

    ru: int
    items: Items
    read_ru: float
    """Of one read by the documented charges."""

    trials: tuple[Trial, ...]
    limit: str

    @property
    def best(self) -> Trial | None:
        """The best trial inside the objective."""
        return highest(self.trials)

    @property
    def arithmetic(self) -> float:
        """Reads a second that the level pays for."""
        return self.ru / self.read_ru

    @property
    def utilisation(self) -> float | None:
        """RU spent of RU provisioned, at the best rate."""
        return None if self.best is None else self.best.spent_ru / self.ru

    @property
    def spent(self) -> bool:
        """Whether the RU/s ended the search, and the best rate spends them."""
        return self.limit == RU and (self.utilisation or 0.0) >= SPENT

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        best = self.best
        own = ("ru", "read_ru", "arithmetic", "utilisation", "limit", "spent")
        return {name: getattr(self, name) for name in own} | {
            "item_bytes": self.items.size,
            "partitions": self.items.parts,
            "best": best and best.to_json(),
            "off": None if best is None else best.ok_rate / self.arithmetic - 1,
            "per_100_ru": None if best is None else best.ok_rate / self.ru * 100,
            "trials": [each.to_json() for each in self.trials],
        }


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect: `rate` is the best one of users' requests, None where none was inside the objective."""

    name: str
    inputs: str
    ru: float
    """What there was to spend in a second."""

    rate: float | None
    predicted_ru: float | None
    limit: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        off = None if self.predicted_ru is None else self.predicted_ru / self.ru - 1
        return asdict(self) | {"off": off}


@dataclass(frozen=True, slots=True)
class SweepResult:
    """All that a sweep measured; lives until its report is written."""

    configuration: Mapping[str, Any]
    subject: str
    """The account, without what may be secret; LABEL where it is emulated."""

    levels: tuple[Level, ...]
    effects: tuple[Effect, ...]
    interrupted: bool

    @property
    def valid(self) -> bool:
        """Whether it came to its end and truly spent every level."""
        return not self.interrupted and bool(self.levels) and all(each.spent for each in self.levels)

    @property
    def report(self) -> Report:
        """The report, with all of it as plain values."""
        emulated = self.subject == LABEL
        short = [each for each in self.levels if not each.spent]
        return Report(
            kind="ru",
            configuration=self.configuration,
            series=(),
            interrupted=self.interrupted,
            failures=tuple(
                f"{each.ru:,} RU/s was not spent; what ended the search was: {each.limit}" for each in short
            ),
            extra={
                "subject": self.subject,
                "holds": "Every level was truly spent: at the best rate 95 % or more of its RU, and then came 429s.",
                "method": [*([EMULATED] if emulated else []), *paragraphs(METHOD)],
                "ru": {
                    "label": LABEL if emulated else None,
                    "levels": [each.to_json() for each in self.levels],
                    "effects": [each.to_json() for each in self.effects],
                },
            },
        )


def notes(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on what the cells leave out."""
    lines = [f"{each['ru']:,} RU/s was not spent: {each['limit']}" for each in levels if not each["spent"]]
    if any(each["best"] and each["best"]["late"] for each in levels):
        lines.append("* The generator came late in this trial (lag p99 above 1 ms): its latencies are not the store's.")
    return lines


def level_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a level; a * marks latencies that a late generator spoilt."""
    best = one["best"]
    size = f"{one['item_bytes'] / KB:g} KB"
    if best is None:
        cells = f"{one['ru']:,}", size, f"{one['read_ru']:.2f} RU", NONE, f"{one['arithmetic']:,.1f}/s"
        return (*cells, *(NONE,) * (len(LEVEL_HEADINGS) - len(cells)))
    late = " *" if best["late"] else ""
    return (
        f"{one['ru']:,}",
        size,
        f"{best['charge_ru']:.2f} RU",
        f"{best['ok_rate']:,.1f}/s",
        f"{one['arithmetic']:,.1f}/s",
        f"{one['off']:+.1%}",
        f"{one['utilisation']:.1%}",
        format_us(best["p50_us"]) + late,
        format_us(best["p99_us"]) + late,
        f"{best['throttled']:.2%}",
        f"{one['per_100_ru']:.1f}/s",
    )


def effect_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of an effect."""
    if one["rate"] is None:
        return one["name"], f"not measured: {one['limit']}", NONE, NONE, NONE, NONE
    figures = f"{one['ru']:,.0f}", f"{one['rate']:,.1f}/s", f"{one['predicted_ru']:,.0f}", f"{one['off']:+.1%}"
    return one["name"], one["inputs"], *figures


def sections(found: Mapping[str, Any]) -> list[str]:
    """Lay out what only a sweep has to show on its page: the levels, their knees, and the effects."""
    label = f" ({found['label']})" if found["label"] else ""
    levels, effects = found["levels"], found["effects"]
    below = "".join(f'<p class="soft">{escaped(each)}</p>' for each in notes(levels))
    shown = table(LEVEL_HEADINGS, map(level_row, levels), numbers=range(len(LEVEL_HEADINGS)))
    parts = [section(f"What each level sustains{label}", shown + below, LEVELS)]
    if effects:
        shown = table(EFFECT_HEADINGS, map(effect_row, effects), numbers=range(2, 6))
        parts.append(section(f"What else has an effect{label}", shown, EFFECTS))
    for each in levels:
        heading = f"The knee at {each['ru']:,} RU/s{label}"
        parts.append(section(heading, _knee_plot(each), KNEES if each is levels[0] else ""))
    return parts


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
    expected = 100 * np.maximum(0, 1 - found["arithmetic"] / drawn)
    below.plot(drawn, expected, color=FAINT, label="429s, by arithmetic: 1 - RU/s ÷ RU requested")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_formatter("{x:g} %")
    rate_axis(below, "reads/s that fell due")
    if found["best"]:
        for axes in frames:
            axes.axvline(found["best"]["rate"], color=LINES[3], linewidth=1)
