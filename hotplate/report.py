"""Reports: rows of figures, a sentence, and plots, as a terminal table, as JSON and as one HTML page.

An experiment returns a `Report`. All verbs that measure, plan or evaluate print and save theirs with this module.
Units of values: `us` (microseconds), `/s`, `share` (0 to 1), `RU`, `RU/s`, `bytes`, `USD`, `USD/month`, or any text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one subject.

    `value` is the headline: of a percentile, that of all rounds pooled; None if it is not known, and `note` says why.
    `values` are those of the rounds, `low` and `high` the 95 % interval. `note` also qualifies a known value, as
    `assumed`, `COMPUTED` or `at least`. A row that is not `main` is left out of the first table.
    """

    subject: str
    figure: str
    unit: str = ""
    value: float | None = None
    values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    note: str = ""
    main: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot; a y of None is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over one x axis. Units are those of rows; `marks` are vertical lines with their labels, by x."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    x_unit: str = ""
    y_unit: str = ""
    log_x: bool = False
    log_y: bool = False
    marks: Mapping[float, str] = field(default_factory=dict)
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one experiment.

    `head` stands above everything, as EMULATED. `failures` say what could not be measured, `broken` what was measured
    and is not as it should be. `extra` is for programs, as histograms, and is only in the JSON.
    """

    kind: str
    sentence: str
    rows: tuple[Row, ...] = ()
    head: str = ""
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    interrupted: bool = False
    configuration: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done, 1 not everything was measured, 3 measured and not as it should be."""
        return 1 if self.failures or self.interrupted else 3 if self.broken else 0
