"""First lines of reports without a verdict, and the report of an interrupted experiment."""

from hotplate.base.report import Report
from hotplate.bench.process import describe

NOTHING_MEASURED = "Nothing was measured."
SEE_BELOW = "see below"
# Before figures that are exact if Azure's documented charges are.
EMULATED_CHARGES = "by an emulator of Azure's charges: "


def no_verdict(reason: str = SEE_BELOW) -> str:
    """Return the first line of a report without a verdict."""
    return f"There is no verdict: {reason}."


def interrupted_report(kind: str) -> Report:
    """Return the report of an experiment that was stopped before its first round."""
    return Report(kind=kind, sentence=NOTHING_MEASURED, interrupted=True, machine=describe())
