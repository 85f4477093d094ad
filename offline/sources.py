"""Sources of lists: what a release is made of, one list or several by name."""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from hotplate.offline.errors import SettingError
from hotplate.offline.measurement import Items, Measurement, Observe
from hotplate.stores.encoding import MAX_LISTS, check_list
from hotplate.stores.origin import OriginRecord
from hotplate.stores.publication import PartContext, WrittenPart
from hotplate.stores.store import Observer, Plan, Row
from hotplate.stores.verification import OnProgress


class Source(Protocol):
    """A release to publish."""

    def plan(self) -> Plan:
        """Return the maximum number of rows, and their estimated bytes."""

    def about(self) -> OriginRecord:
        """Return the origin of the release, for the manifest."""

    def items(self) -> Items:
        """Return the lists' items."""


class ListSource(Source, Protocol):
    """Lists of a model, or imported ones."""

    def batches(self, observe: Observe = ...) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes, `meta` rows last; *observe* gets the users' lists."""


AnySource = TypeVar("AnySource", bound=Source)


@runtime_checkable
class PartedSource(Source, Protocol):
    """Lists that other processes write as parts of one draft."""

    def own_rows(self) -> Iterator[list[Row]]:
        """Yield this process's rows, in order."""

    def sample_rows(self) -> list[Row]:
        """Return typical rows for a compression dictionary."""

    async def write_parts(
        self, context: PartContext, lists: Measurement, observer: Observer | None, on_progress: OnProgress
    ) -> WrittenPart:
        """Write parts from 1 on, measure users' lists in *lists*, and return the sum; raises StoreError."""


@dataclass(frozen=True, slots=True)
class NamedLists:
    """The lists of one release by name; the first is the default one, whose name may be empty.

    The keys of a source's rows have its name, except those of the first, which have none.
    """

    sources: Mapping[str, ListSource]

    def __post_init__(self) -> None:
        for name in filter(None, self.sources):
            check_list(name)
        if len(self.sources) > MAX_LISTS:
            raise SettingError(f"A release has at most {MAX_LISTS} lists, not {len(self.sources)}.")

    def plan(self) -> Plan:
        """See `Source`."""
        plans = [source.plan() for source in self.sources.values()]
        return Plan(
            rows=sum(plan.rows for plan in plans),
            payload_bytes=sum(plan.payload_bytes for plan in plans),
            meta_bytes=sum(plan.meta_bytes for plan in plans),
        )

    def about(self) -> OriginRecord:
        """See `Source`; that of the default list, and those of others by name."""
        default, *others = self.sources
        about = self.sources[default].about().copy()
        if default:
            about["list"] = default
        if others:
            about["lists"] = {name: self.sources[name].about() for name in others}
        return about


def stored_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name under which the rows of each list are stored: its own, but "" for the first, the default one."""
    return {name: name if place else "" for place, name in enumerate(names)}


def sources_by_name(source: AnySource | NamedLists) -> Mapping[str, AnySource | ListSource]:
    """Return the lists of a source by name; a source of one list has no name."""
    return source.sources if isinstance(source, NamedLists) else {"": source}


def merged_by_key(sources: Iterable[Iterator[list[Row]]]) -> Iterator[list[Row]]:
    """Merge batches by key: each is of one kind, and those of another list are of another kind."""
    present = [filter(None, batches) for batches in sources]
    return heapq.merge(*present, key=lambda rows: rows[0].key)
