"""The origin of a release: the model or files its lists come from, the options they were made with, and their gates.

A manifest keeps this record as it was written, with fields of other versions (`Manifest.about`). We write it as an
`OriginRecord`. Code reads the fields that it knows as an `Origin`. All of them are optional: third-party publishers may
write none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NotRequired, TypedDict

import msgspec
from msgspec import Struct


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict of one gate, a bound that lists must meet before they go live.

    *measured* is None if the gate could not be measured, and *note* says why. *bound* is a maximum if *at_most* is
    true, else a minimum.
    """

    gate: str
    measured: float | None
    bound: float
    at_most: bool
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        """Describe the verdict in a sentence, such as `gate ndcg: 0.12 is below 0.15`."""
        if self.measured is None:
            return f"gate {self.gate}: {'passed' if self.passed else 'it cannot be judged'}, as {self.note}"

        # Four digits, or all of them if the figures would look equal.
        measured = f"{self.measured:.4g}"
        bound = f"{self.bound:.4g}"
        if measured == bound and self.measured != self.bound:
            measured = str(self.measured)
            bound = str(self.bound)

        beyond = "above" if self.at_most else "below"
        side = f"not {beyond}" if self.passed else beyond
        note = f" ({self.note})" if self.note else ""
        return f"gate {self.gate}: {measured} is {side} {bound}{note}"


def failures(verdicts: Iterable[GateVerdict]) -> str:
    """Describe the failed verdicts in one sentence; empty if all passed."""
    return "; ".join(str(verdict) for verdict in verdicts if not verdict.passed)


@dataclass(frozen=True, slots=True)
class GateRecord:
    """The gates of a release.

    *forced* means that it may go live although gates failed. *against* is the id of the live release that its lists
    were compared with.
    """

    forced: bool = False
    against: str | None = None
    verdicts: tuple[GateVerdict, ...] = ()

    @property
    def refusing(self) -> tuple[str, ...]:
        """Names of the gates that keep the release from going live."""
        return () if self.forced else tuple(verdict.gate for verdict in self.verdicts if not verdict.passed)

    def to_record(self) -> dict[str, Any]:
        """Return the entry `gates` of a manifest's record, as it is read back from JSON."""
        record: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return record


class AttributesEntry(TypedDict):
    """The item attributes of a release as they are written; see `AttributesRecord`."""

    pieces: int
    columns: dict[str, str]
    shown: NotRequired[Sequence[str]]
    notes: NotRequired[Sequence[str]]


class OriginRecord(TypedDict, total=False):
    """The origin of a release as our publishers write it, in JSON; `Origin` explains the fields that are read again.

    hotplate    version of the package
    trained_at  ISO 8601 time
    data        fingerprint of the interactions or of the imported files
    fold_in     whether the release has item factors
    """

    hotplate: str
    engine: str
    model: str | None
    trained_at: str
    data: str | None
    learnt_until: str | None
    params: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    list_length: int
    keep_seen: bool
    rules: Mapping[str, Mapping[str, int | float]]
    fold_in: bool
    rows: int
    left_out: Mapping[str, int]
    notes: Sequence[str]
    item_attributes: AttributesEntry
    list: str
    lists: Mapping[str, "OriginRecord"]
    gates: Mapping[str, Any]


class AttributesRecord(Struct, frozen=True):
    """The item attributes of a release: the number of pieces of their table, and `number` or `text` by column."""

    pieces: int = 0
    columns: dict[str, str] = {}
    shown: tuple[str, ...] = ()
    """The columns that answers may have; by the others lists are only filtered."""

    notes: tuple[str, ...] = ()
    """Sentences about doubtful cells."""


class Quality(Struct, frozen=True):
    """Metrics of a model's lists, cut at *k* items; those of baselines and splits are in the record alone."""

    k: int | None = None
    model: dict[str, Any] = {}
    """Figures by the name of the metric, None if not measured; tables, such as `intervals`, by their name."""

    new_days: int | None = None
    """The age in days up to which items count as new."""

    as_served: dict[str, Any] = {}
    """The same with the popular list for users without one."""

    as_trained: "Quality | None" = None
    """The metrics in training, if rules have changed the lists since."""


class Origin(Struct, frozen=True):
    """The known origin of one list; that of the default list is also the release's."""

    engine: str = ""
    model: str | None = None
    """The model's id; None for imported lists."""

    learnt_until: object = None
    """ISO 8601 time of the newest learnt event; other values are ignored (`learnt_until_s`)."""

    params: dict[str, Any] = {}
    """Options of the engine."""

    metrics: dict[str, Any] | None = None
    """The evaluation of the model, None without one; *quality* is the part that is shown."""

    list_length: int | None = None
    keep_seen: bool = False
    rules: dict[str, dict[str, int | float]] = {}
    """Counts of each rule, by their names and that of the rule."""

    rows: int = 0
    """Rows read from imported files, with *left_out* (their number by reason) and *notes* on doubtful ones."""

    left_out: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    item_attributes: AttributesRecord = AttributesRecord()
    list: str = ""
    """The name of the default list; empty if it has none."""

    lists: dict[str, "Origin"] = {}
    """The origins of the other lists by name."""

    gates: GateRecord = GateRecord()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Origin":
        """Decode a record; fields that others wrote as null or as another type are left out.

        Raises msgspec.ValidationError for those that say what a release holds, and whether it may go live.
        """
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError:
            return cls(**dict(_readable(record)))

    @property
    def learnt_until_s(self) -> float | None:
        """`learnt_until` in epoch seconds; None if it is unknown or unreadable."""
        if not isinstance(self.learnt_until, str):
            return None
        try:
            return datetime.fromisoformat(self.learnt_until).timestamp()
        except ValueError:
            return None

    @property
    def quality(self) -> Quality:
        """The metrics that are shown, empty without an evaluation of ours."""
        try:
            return msgspec.convert(self.metrics or {}, Quality)
        except msgspec.ValidationError:
            return Quality()


_STRUCTURE = ("item_attributes", "list", "gates")


def _readable(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and the decoded values of the fields of *record* that have the type of Origin's field.

    Null and other types are skipped, as informative fields may come from other programs. Those in _STRUCTURE, and
    `lists`, say what the release holds and whether it may go live: there, another type raises msgspec.ValidationError.
    """
    for field in msgspec.structs.fields(Origin):
        value = record.get(field.name)
        if field.name == "lists" and value is not None:
            lists = msgspec.convert(value, dict[str, dict[str, Any]])
            yield field.name, {name: Origin.of(of_list) for name, of_list in lists.items()}
        elif value is not None:
            try:
                yield field.name, msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                if field.name in _STRUCTURE:
                    raise msgspec.ValidationError(f"{error} - in `$.{field.name}`") from error
