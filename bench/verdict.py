"""The verdict of an experiment: findings by gravity, the first sentence, made of all of them, and rankings."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from hotplate.base.report import Report, Row, rounded
from hotplate.bench.process import describe
from hotplate.bench.statistics import Figure, compared

NOTHING_MEASURED = "Nothing was measured."
NOT_LISTS = "The users' own lists were not measured, but the popular list."
# Before figures that are exact if Azure's documented charges are.
EMULATED_CHARGES = "by an emulator of Azure's charges: "


class Gravity(IntEnum):
    """The kinds of findings, the gravest first."""

    WRONG = 1
    """Answers were not the lists of the store."""

    UNCOMPARED = 2
    """Answers could not be compared with the store."""

    POPULAR = 3
    """Answers were the popular list instead of the users' own."""

    UNMEASURED = 4
    """The load generator was late, or too little was measured."""

    ERRORS = 5
    OUTSIDE = 6
    """Measured, and beyond a bound."""


# Wider intervals say nothing.
WIDEST = 100.0
# Findings by which nothing is known of the service.
FAILURES = (Gravity.UNCOMPARED, Gravity.UNMEASURED)


class Finding(NamedTuple):
    """Something that is wrong, in a sentence without its full stop.

    *lead* is the sentence for the first line; without it, that is the text.
    """

    gravity: Gravity
    text: str
    lead: str = ""


def findings(gravity: Gravity, texts: Iterable[str], lead: str = "") -> list[Finding]:
    """Return a finding for each text."""
    return [Finding(gravity, text, lead) for text in texts]


def concluded(
    report: Report,
    found: Sequence[Finding],
    answer: str = "",
    *,
    figures: str = "",
    answered: Collection[Gravity] = (),
) -> Report:
    """Return *report* with its findings, and with its first sentence, which begins with the gravest of them.

    answer    the sentence without findings, or with those that it states itself, of the kinds *answered*
    figures   what was measured, without a verdict, which follows a finding
    """
    by_gravity = sorted(found, key=lambda finding: finding.gravity)
    sentence = answer
    if any(finding.gravity not in answered for finding in by_gravity):
        sentence = f"{_lead(by_gravity)} {figures}".rstrip()
    return replace(
        report,
        sentence=sentence,
        broken=tuple(finding.text for finding in by_gravity if finding.gravity not in FAILURES),
        failures=tuple(finding.text for finding in by_gravity if finding.gravity in FAILURES),
    )


def _lead(found: Sequence[Finding]) -> str:
    """Return the sentence on the first of the findings, which are in the order of their gravity."""
    gravest = found[0]
    if gravest.lead:
        return gravest.lead
    if gravest.gravity is Gravity.UNMEASURED:
        # A service that ended is the graver reason for a late generator.
        errors = [finding.text for finding in found if finding.gravity is Gravity.ERRORS]
        return no_verdict("; ".join([*errors, gravest.text]))
    first_word = gravest.text.partition(" ")[0]
    if first_word.isalpha():  # not a name, such as that of a figure
        return f"{gravest.text[:1].upper()}{gravest.text[1:]}."
    return f"{gravest.text}."


@dataclass(frozen=True, slots=True)
class Difference:
    """The ratio of a subject's figure to the least one."""

    name: str
    ratio: Figure

    @property
    def is_proven(self) -> bool:
        """Whether the interval excludes equality."""
        low = self.ratio.low
        return low is not None and low > 1

    @property
    def factor(self) -> str:
        """Format the ratio with its interval, as `1.4 times (1.3 to 1.6)`."""
        ratio = self.ratio.value or 0.0
        low = self.ratio.low
        high = self.ratio.high
        times = f"{rounded(ratio)} times"
        if low is None or high is None:
            return f"{times} ({self.ratio.note})"
        if high > WIDEST * low:
            return f"{times} (the rounds differ too much for an interval)"
        return f"{times} ({rounded(low)} to {rounded(high)})"


@dataclass(frozen=True, slots=True)
class Ranking:
    """The subject with the least figure, and the others' differences, ascending."""

    least: str
    differences: tuple[Difference, ...]

    @property
    def proven(self) -> tuple[Difference, ...]:
        """Subjects with a proven larger figure."""
        return tuple(difference for difference in self.differences if difference.is_proven)

    @property
    def alike(self) -> tuple[Difference, ...]:
        """Subjects for which no difference is proven."""
        return tuple(difference for difference in self.differences if not difference.is_proven)

    def describe(self, least: str) -> str:
        """Return a line such as `files fastest; Redis 1.4 times (1.3 to 1.6)`."""
        proven = [f"{difference.name} {difference.factor}" for difference in self.proven]
        if not self.alike:
            return f"{self.least} {least}; {', '.join(proven)}"
        *names, last = [self.least, *(difference.name for difference in self.alike)]
        names_of_alike = f"{', '.join(names)} and {last}"
        alike = ", ".join(f"{difference.name} {difference.factor}" for difference in self.alike)
        return "; ".join([f"{names_of_alike}: no difference proven, {alike}", *proven])


def rank(figures: Mapping[str, Row]) -> Ranking | None:
    """Return the subject with the least of *figures*, such as the p99 of each store by name, and how the others differ.

    Differences are ratios to the least figure. The result is None if fewer than two figures are known.
    """
    known = {name: figure for name, figure in figures.items() if figure.value is not None}
    if len(known) < 2:
        return None

    least, *larger = sorted(known, key=lambda name: known[name].value or 0.0)
    differences = tuple(Difference(name, compared(known[least], known[name])) for name in larger)
    return Ranking(least, differences)


def no_verdict(reason: str) -> str:
    """Return the first line of a report without a verdict."""
    return f"There is no verdict: {reason}."


def interrupted_report(kind: str) -> Report:
    """Return the report of an experiment that was stopped before its first round."""
    return Report(kind=kind, sentence=NOTHING_MEASURED, interrupted=True, machine=describe())
