"""An experiment: its declared figures, its runs, and how it ends: complete, by Ctrl-C, or by a failure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from hotplate.base.report import Column, Report, Row, format_count
from hotplate.bench.errors import BenchFailed
from hotplate.bench.figure_names import POPULAR_LISTS
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.measure.lists import CheckResult, check_answers
from hotplate.bench.measure.progress import ProgressDisplay
from hotplate.bench.measure.statistics import ERRORS, PERCENTILES, error_share, popular_share
from hotplate.bench.process import describe
from hotplate.bench.verdict import NOTHING_MEASURED
from hotplate.stores.errors import StoreError

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Figure(Generic[Subject]):
    """A declared figure of an experiment, and the column of its table, unless it has no heading.

    name     in rows
    unit     of the value; `shown` and `digits` are those of the column
    measure  returns the value for a subject, such as a store, as a number or a row; None if it has no row
    main     whether it is one of the report's lines, without a table
    """

    name: str
    unit: str
    measure: Callable[[Subject], Row | float | None]
    heading: str = ""
    shown: str = ""
    digits: int = 2
    main: bool = True


def latencies(
    measure: Callable[[str, Subject], Row | None], names: Iterable[str] = PERCENTILES
) -> Iterator[Figure[Subject]]:
    """Yield a figure for each percentile, such as "p99", that *measure* returns for its name and a subject, in µs."""
    for name in names:
        heading = f"{name}\nms" if name in PERCENTILES else ""
        yield Figure(name, "us", partial(measure, name), heading, "ms")


def shares(results_of: Callable[[Subject], Sequence[Result]]) -> tuple[Figure[Subject], ...]:
    """Return the share of errors, and that of popular lists, which has no row if no lists were received."""
    return (
        Figure(ERRORS, "share", lambda subject: error_share(results_of(subject)), "errors\n%", "%"),
        Figure(POPULAR_LISTS, "share", lambda subject: popular_share(results_of(subject)), "popular\n%", "%"),
    )


def report_of(kind: str, figures: Sequence[Figure[Subject]], subjects: Mapping[str, Subject]) -> Report:
    """Return the rows and columns of the figures of all subjects, such as stores, by name."""
    rows = list[Row]()
    for name, subject in subjects.items():
        for figure in figures:
            measured = figure.measure(subject)
            if measured is not None:
                row = measured if isinstance(measured, Row) else Row(value=float(measured))
                rows.append(replace(row, subject=name, figure=figure.name, unit=figure.unit, main=figure.main))

    columns = [Column(figure.name, figure.heading, figure.shown, figure.digits) for figure in figures if figure.heading]
    return Report(kind=kind, sentence="", rows=tuple(rows), columns=tuple(columns))


def left_out(count: int, total: int, noun: str) -> str:
    """Return `1 of 6 rounds is left out`."""
    return f"{count} of {format_count(total, noun)} {'is' if count == 1 else 'are'} left out"


class Runs:
    """Runs of one load generator; sampled responses of each subject are kept, to be compared with a store's lists."""

    def __init__(self, worker: LoadWorker, display: ProgressDisplay) -> None:
        self._worker = worker
        self._display = display
        self._samples = dict[str, list[ResponseSample]]()
        self._answers = dict[str, int]()  # of which the samples were drawn

    def run(self, load: Load, subject: str = "", *, shown: str = "", kept: list[Result] | None = None) -> Result:
        """Run a load, shown as a phase of this name, and append the result, which has no samples, to the *kept* ones.

        Raises KeyboardInterrupt after a run that Ctrl-C ended.
        """
        if shown:
            self._display.start(shown)
        result = self._worker.run(load)
        if load.samples:
            self._samples.setdefault(subject, []).extend(result.samples)
            self._answers[subject] = self._answers.get(subject, 0) + result.answers
        result = replace(result, samples=())
        if kept is not None:
            kept.append(result)
        if result.interrupted:
            raise KeyboardInterrupt
        return result

    def check(self, store: str, subject: str = "") -> CheckResult:
        """Compare the sampled responses of a subject with the lists of the *store* at this URL."""
        return check_answers(store, self._samples.get(subject, []), self._answers.get(subject, 0))


class Ending(NamedTuple):
    """What ended an experiment early; *failure* is empty unless something failed."""

    interrupted: bool = False
    failure: str = ""


def until_stopped(measure: Callable[[], None], results: Sized) -> Ending:
    """Measure, and return how it ended; *results* are filled meanwhile, and are kept by whatever ends it.

    Raises BenchFailed, StoreError and KeyboardInterrupt if it ends before the first result.
    """
    try:
        measure()
    except (BenchFailed, StoreError, KeyboardInterrupt) as error:
        if not results:
            raise
        return Ending(isinstance(error, KeyboardInterrupt), str(error))
    return Ending()


def interrupted_report(kind: str) -> Report:
    """Return the report of an experiment that was stopped before its first round."""
    return Report(kind=kind, sentence=NOTHING_MEASURED, interrupted=True, machine=describe())
