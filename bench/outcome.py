"""The outcome of an experiment, of which its report is made with the parts that every report has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotplate.bench.process import describe
from hotplate.report import Column, Plot, Report, Row

NOTHING_MEASURED = "Nothing was measured."
SEE_BELOW = "see below"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an experiment found; the fields that are not explained here are those of `hotplate.report.Report`.

    answer    the first line; empty if there is no verdict
    doubt     why there is no verdict, for the first line
    failures  what could not be measured
    broken    what was measured and is not acceptable
    origins   what is measured, exact, assumed and priced
    """

    kind: str
    answer: str = ""
    doubt: str = SEE_BELOW
    rows: Iterable[Row] = ()
    columns: tuple[Column, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    plots: Iterable[Plot] = ()
    plot_first: bool = False
    notes: Iterable[str] = ()
    method: Iterable[str] = ()
    broken: Iterable[str] = ()
    failures: Iterable[str] = ()
    interrupted: bool = False
    configuration: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def report(self) -> Report:
        """Return the report, with a description of this machine."""
        return Report(
            kind=self.kind,
            sentence=self.answer or f"There is no verdict: {self.doubt}.",
            rows=tuple(self.rows),
            columns=self.columns,
            marks=self.marks,
            verdicts=self.verdicts,
            origins=self.origins,
            plots=tuple(self.plots),
            plot_first=self.plot_first,
            notes=tuple(self.notes),
            method=tuple(self.method),
            broken=tuple(self.broken),
            failures=tuple(self.failures),
            interrupted=self.interrupted,
            configuration=self.configuration,
            machine=describe(),
            extra=self.extra,
        )


def interrupted_report(kind: str) -> Report:
    """Return the report of an experiment that was stopped before its first round."""
    return Outcome(kind=kind, answer=NOTHING_MEASURED, interrupted=True).report()
