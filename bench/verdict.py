"""The verdict of an experiment: its findings by gravity, and the first sentence, which is made of all of them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial
from typing import NamedTuple

from hotplate.base.report import Report, Row, format_count, format_value
from hotplate.bench.process import describe

NOTHING_MEASURED = "Nothing was measured."
MIN_ROUNDS = 5
TOO_FEW_ROUNDS = f"fewer than {MIN_ROUNDS} rounds"
TOO_FEW_SECONDS = f"fewer than {MIN_ROUNDS} seconds"
# Wider intervals say nothing.
WIDEST = 100.0
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


# Findings by which nothing is known of the service, and bounds that it did not keep.
FAILURES = (Gravity.UNCOMPARED, Gravity.UNMEASURED)
BOUNDS = (Gravity.ERRORS, Gravity.OUTSIDE)


class Finding(NamedTuple):
    """Something that is wrong, in a sentence without its full stop.

    *lead* is the sentence for the first line; without it, that is the text.
    """

    gravity: Gravity
    text: str
    lead: str = ""


def findings_of(gravity: Gravity, texts: Iterable[str], *, lead: str = "") -> list[Finding]:
    """Return a finding for each text."""
    return [Finding(gravity, text, lead) for text in texts]


def prefixed(findings: Iterable[Finding], prefix: str) -> list[Finding]:
    """Return findings with texts that begin with *prefix*."""
    return [finding._replace(text=prefix + finding.text) for finding in findings]


def concluded(
    report: Report,
    findings: Sequence[Finding],
    answer: str = "",
    *,
    figures: str = "",
    answered: Collection[Gravity] = (),
    certainty: str = "",
    assumed: Iterable[str] = (),
) -> Report:
    """Return *report* with its findings, the machine, and its first sentences, which begin with the gravest of them.

    answer     the sentence without findings, or with those that it states itself, of the kinds *answered*
    figures    what was measured, without a verdict, which follows a finding
    certainty  how sure the answer and the figures are, which follows them
    assumed    what they depend on and was not measured, which ends them
    """
    by_gravity = sorted(findings, key=lambda finding: finding.gravity)
    lead = ""
    measured = answer
    if any(finding.gravity not in answered for finding in by_gravity):
        lead = _lead(by_gravity)
        measured = figures
    sentences = [lead, measured]
    if measured:
        assumptions = ", ".join(filter(None, assumed))
        sentences += [certainty, f"Assumed: {assumptions}." if assumptions else ""]
    return replace(
        report,
        sentence=" ".join(filter(None, sentences)),
        machine=describe(),
        broken=tuple(finding.text for finding in by_gravity if finding.gravity not in FAILURES),
        failures=tuple(finding.text for finding in by_gravity if finding.gravity in FAILURES),
    )


def how_sure(figures: Mapping[str, Row], measured: str, too_few: str = TOO_FEW_ROUNDS) -> str:
    """Return the 95 % intervals of the known *figures* that decide, or why they have none.

    A figure's name is a format of its interval, as `p99 {}`. Computed and assumed figures are explained by their marks.
    *measured* says over what, such as `14 rounds`, and *too_few* what a figure without an interval lacks.
    """
    known = {name: row for name, row in figures.items() if row.value is not None and not (row.mark and row.low is None)}
    intervals = [
        name.format(span(row, partial(format_value, unit=row.unit))) for name, row in known.items() if not _gap(row)
    ]
    gaps = dict.fromkeys(gap for row in known.values() if (gap := _gap(row, too_few)))
    parts = [f"{', '.join(intervals)} (95 % interval over {measured})"] if intervals else []
    parts += [f"unknown, {gap}" for gap in gaps]
    return f"How sure: {'; '.join(parts)}." if parts else ""


def spread_over(rounds: int) -> str:
    """Return what an interval of percentiles is over: `14 rounds` or, of few rounds, `the seconds of 1 round`."""
    counted = format_count(rounds, "round")
    return counted if rounds >= MIN_ROUNDS else f"the seconds of {counted}"


def span(figure: Row, shown: Callable[[float], str]) -> str:
    """Return the interval of a figure, as `1.3 to 1.6`, or why it has none."""
    return _gap(figure) or f"{shown(figure.low or 0.0)} to {shown(figure.high or 0.0)}"


def _gap(figure: Row, too_few: str = TOO_FEW_ROUNDS) -> str:
    """Return why a figure has no interval; empty if it has one."""
    if figure.low is None or figure.high is None:
        return figure.note or too_few
    return "the rounds differ too much for an interval" if figure.high > WIDEST * figure.low else ""


def _lead(findings: Sequence[Finding]) -> str:
    """Return the sentence on the first of the findings, which are in the order of their gravity."""
    gravest = findings[0]
    if gravest.lead:
        return gravest.lead
    if gravest.gravity is Gravity.UNMEASURED:
        # A service that ended is the graver reason for a late generator.
        errors = [finding.text for finding in findings if finding.gravity is Gravity.ERRORS]
        return no_verdict("; ".join([*errors, gravest.text]))
    first_word = gravest.text.partition(" ")[0]
    if first_word.isalpha():  # not a name, such as that of a figure
        return f"{gravest.text[:1].upper()}{gravest.text[1:]}."
    return f"{gravest.text}."


def no_verdict(reason: str) -> str:
    """Return the first line of a report without a verdict."""
    return f"There is no verdict: {reason}."
