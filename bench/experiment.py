"""How an experiment ends: complete, by Ctrl-C, or by a failure after its first results."""

from collections.abc import Callable, Sized
from typing import NamedTuple

from hotplate.base.report import Report
from hotplate.bench.errors import BenchFailed
from hotplate.bench.process import describe
from hotplate.bench.verdict import NOTHING_MEASURED
from hotplate.stores.errors import StoreError


class Ending(NamedTuple):
    """What ended an experiment early; *failure* is empty unless something failed."""

    interrupted: bool = False
    failure: str = ""


def until_stopped(measure: Callable[[], None], results: Sized) -> Ending:
    """Measure, and return how it ended; *results* are filled meanwhile, and are kept by whatever ends it.

    Raises BenchFailed and StoreError if it fails before the first result.
    """
    try:
        measure()
    except KeyboardInterrupt:
        return Ending(interrupted=True)
    except (BenchFailed, StoreError) as error:
        if not results:
            raise
        return Ending(failure=str(error))
    return Ending()


def interrupted_report(kind: str) -> Report:
    """Return the report of an experiment that was stopped before its first round."""
    return Report(kind=kind, sentence=NOTHING_MEASURED, interrupted=True, machine=describe())
