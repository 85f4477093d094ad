"""The runs of an experiment, and how it ends: complete, by Ctrl-C, or by a failure after its first results."""

from collections.abc import Callable, Sized
from dataclasses import replace
from typing import NamedTuple

from hotplate.base.report import Report
from hotplate.bench.errors import BenchFailed
from hotplate.bench.lists import CheckResult, check_answers
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.process import describe
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.verdict import NOTHING_MEASURED
from hotplate.stores.errors import StoreError


class Runs:
    """Runs of one load generator; sampled responses of each subject are kept, to be compared with a store's lists."""

    def __init__(self, worker: LoadWorker, display: ProgressDisplay) -> None:
        self._worker = worker
        self._display = display
        self._samples = dict[str, list[ResponseSample]]()
        self._answers = dict[str, int]()  # of which the samples were drawn

    def run(self, load: Load, subject: str = "", *, shown: str = "") -> Result:
        """Run a load, shown as a phase of this name; the result has no samples."""
        if shown:
            self._display.start(shown)
        result = self._worker.run(load)
        if load.samples:
            self._samples.setdefault(subject, []).extend(result.samples)
            self._answers[subject] = self._answers.get(subject, 0) + result.answers
        return replace(result, samples=())

    def check(self, store: str, subject: str = "") -> CheckResult:
        """Compare the sampled responses of a subject with the lists of the *store* at this URL."""
        return check_answers(store, self._samples.get(subject, []), self._answers.get(subject, 0))


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
