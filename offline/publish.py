"""Publishing lists as a release; a thread computes the next batch."""

import asyncio
import heapq
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from hotplate.offline.errors import GateFailed, SettingError
from hotplate.offline.gates import (
    AS_FLAGS,
    Gate,
    check,
    check_names,
    compare_names,
    depth_of,
    gates_of,
    judge,
    parse_gates,
    remedies,
    with_defaults,
)
from hotplate.offline.measurement import Items, Measurement, Observe
from hotplate.offline.options import PublishSettings
from hotplate.offline.steps import timed
from hotplate.offline.threads import DaemonThreads
from hotplate.stores import publication
from hotplate.stores.catalogue import Arm, ReleaseId, ReleaseRef
from hotplate.stores.compression import default_encoding
from hotplate.stores.encoding import ITEM, MAX_LISTS, POPULAR, check_list, prefix_of
from hotplate.stores.errors import HeldBack
from hotplate.stores.lifecycle import prune, wait_for_probation
from hotplate.stores.manifest import Manifest, Tally
from hotplate.stores.options import parse_seconds
from hotplate.stores.origin import GateRecord, GateVerdict, Origin, failures
from hotplate.stores.publication import ParallelWriters, PartContext, WrittenPart, WrittenRelease
from hotplate.stores.store import Observer, Plan, Reader, Row, Store
from hotplate.stores.verification import OnProgress, unreported


class Source(Protocol):
    """A release to publish."""

    def plan(self) -> Plan:
        """Return the maximum number of rows, and their estimated bytes."""

    def about(self) -> dict[str, Any]:
        """Return the origin of the release, for the manifest."""

    def items(self) -> Items:
        """Return the lists' items."""


class ListSource(Source, Protocol):
    """Lists of a model, or imported ones."""

    def batches(self, observe: Observe = ...) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes, `meta` rows last; *observe* gets the users' lists."""


S = TypeVar("S", bound=ListSource)
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

    def about(self) -> dict[str, Any]:
        """See `Source`; that of the default list, and those of others by name."""
        default, *others = self.sources
        about = {**self.sources[default].about()}
        if default:
            about |= {"list": default}
        if others:
            about |= {"lists": {name: self.sources[name].about() for name in others}}
        return about


def source_of_lists(lists: Mapping[str, S]) -> S | NamedLists:
    """Return one source of all *lists* by name; a default list without a name that is the only one is that source."""
    return lists[""] if [*lists] == [""] else NamedLists(lists)


@dataclass(frozen=True, slots=True)
class Place:
    """What a published release becomes: its *name* in messages, and the *option* of `releases activate` for it."""

    name: str
    option: str

    def activation(self, release: ReleaseId, *, force: bool = False) -> str:
        """Return the command that makes a release this."""
        flag = " --force" if force else ""
        return f"hotplate releases activate{flag} {release}{self.option}"


PLACES: Mapping[Arm, Place] = {"A": Place("live", ""), "B": Place("arm B", " --arm B")}


def stored_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name under which the rows of each list are stored: its own, but "" for the first, the default one."""
    return {name: name if place else "" for place, name in enumerate(names)}


def _merged_by_key(sources: Iterable[Iterator[list[Row]]]) -> Iterator[list[Row]]:
    """Merge batches by key: each is of one kind, and those of another list are of another kind."""
    present = [filter(None, batches) for batches in sources]
    return heapq.merge(*present, key=lambda rows: rows[0].key)


def bounds_of(settings: PublishSettings) -> Sequence[Gate]:
    """Return the gates; raises SettingError."""
    return parse_gates(settings.gates, "gates") if isinstance(settings.gates, Mapping) else settings.gates


@dataclass(frozen=True, slots=True)
class Written:
    """The result of one publish.

    seconds   wall time until the release was live or refused
    erased    releases that were pruned
    steps     seconds by step, also of pruning and of waiting for services, which *seconds* leaves out
    refused   why the release was refused, held back or withdrawn; None if it was not
    """

    result: WrittenRelease
    seconds: float
    erased: list[ReleaseId]
    steps: dict[str, float]
    refused: GateFailed | HeldBack | None = None


async def publish_source(
    source: ListSource | PartedSource | NamedLists,
    store: Store,
    settings: PublishSettings | None = None,
    *,
    rehearsal_of: Reader | None = None,
    observer: Observer | None = None,
    on_progress: OnProgress = unreported,
) -> Written:
    """Write all lists of *source* as one release of *store*, make it live, and prune old releases.

    The lists must pass the gates: bounds that the settings have, or those by default (`gates.LEAST_KEPT`). If one
    fails, or another release is the canary (shown to a share of the users first), the release stays ready and nothing
    is pruned; `Written.refused` says why. It also says if services withdraw the release within `probation_wait`.

    Gates compare with the live release; for arm B, the variant in an experiment, with that of arm B. In a rehearsal,
    *store* is a stand-in for *rehearsal_of*, which has the release to compare with, and services are not awaited.

    *observer* gets the charges of other processes, *on_progress* (rows written, rows in all). Raises StoreError, as
    HeldBack for arm B without an experiment, and SettingError for gates that cannot be judged and an invalid
    `probation_wait`.
    """
    settings = settings or PublishSettings()
    compared = store if rehearsal_of is None else rehearsal_of
    probation_s = _probation_s(settings)
    started = perf_counter()
    steps = dict[str, float]()
    (await compared.catalogue()).ref_of(settings.arm)  # raises HeldBack before any work
    gate_check = _GateCheck(source, settings, compared, steps)

    result = await _write(source, store, settings, gate_check, steps, observer=observer, on_progress=on_progress)
    steps |= result.seconds
    failure = await gate_check.refusal(result.manifest)
    refused = GateFailed(failure, result) if failure else result.held_back
    written = Written(result=result, seconds=perf_counter() - started, erased=[], steps=steps, refused=refused)
    if refused is not None:
        return written

    with timed(steps, "prune"):
        written = replace(written, erased=await prune(store, keep=settings.keep))

    if probation_s and settings.activate and settings.arm == "A" and rehearsal_of is None:
        with timed(steps, "wait"):
            withdrawn = await wait_for_probation(store, result.manifest.release, probation_s)
        written = replace(written, refused=withdrawn)
    return written


def _probation_s(settings: PublishSettings) -> float:
    """Return the seconds to wait for services to withdraw the release; raises SettingError."""
    try:
        return parse_seconds(settings.probation_wait)
    except ValueError as error:
        raise SettingError(f"--probation-wait: {error}.") from None


async def _write(
    source: ListSource | PartedSource | NamedLists,
    store: Store,
    settings: PublishSettings,
    gate_check: "_GateCheck",
    steps: dict[str, float],
    *,
    observer: Observer | None,
    on_progress: OnProgress,
) -> WrittenRelease:
    """Write the rows of *source*, measured and judged by *gate_check*, and activate the release if it may go live.

    *steps* gets the seconds that writing waits for lists.
    """
    encoding = settings.encoding or default_encoding(store)
    other_writers = None
    if isinstance(source, PartedSource):
        rows = source.own_rows()
        sample = [] if encoding == "json" else source.sample_rows()
        write_parts = partial(
            source.write_parts, lists=gate_check.lists[""], observer=observer, on_progress=on_progress
        )
        other_writers = ParallelWriters(sample, write_parts)
    else:
        batches = list[Iterator[list[Row]]]()
        for name, named_source in _sources_by_name(source).items():
            batches.append(named_source.batches(gate_check.lists[name].add))
        rows = _merged_by_key(batches)

    draft = settings.resume
    if isinstance(draft, str):
        draft = await publication.take_over(store, ReleaseId(draft))
    activation = None
    if settings.activate:
        activation = publication.Activation(arm=settings.arm, end_canary=settings.end_canary)
    return await publication.publish_release(
        store,
        prefetched(rows, steps),
        plan=source.plan(),
        about=gate_check.about,
        encoding=encoding,
        activation=activation,
        refused_by=gate_check.refused_by,
        draft=draft,
        others=other_writers,
        on_progress=on_progress,
    )


class _Review(NamedTuple):
    """The gates of one list, and the origin of the list."""

    gates: list[Gate]
    origin: Origin


class _Judged(NamedTuple):
    """The release that lists were compared with, and the verdicts."""

    live: ReleaseRef | None
    verdicts: list[GateVerdict]


class _GateCheck:
    """Measures the lists of a release, and judges them by their gates, once.

    `lists` are the measurements by name, filled while the lists are written. *reader* has the live release to compare
    with. *steps* gets the seconds of judging.
    """

    def __init__(
        self,
        source: Source | NamedLists,
        settings: PublishSettings,
        reader: Reader,
        steps: dict[str, float],
    ) -> None:
        self._settings = settings
        self._about = source.about()
        self._reader = reader
        self._steps = steps
        self.lists = dict[str, Measurement]()
        self._reviews = dict[str, _Review]()
        sources = _sources_by_name(source)
        check_names(bounds_of(settings), sources)
        for name, of_list in sources.items():
            gates = gates_of(bounds_of(settings), name)
            items = of_list.items()
            origin = Origin.of(of_list.about())
            check(gates, origin.metrics, knows_catalogue=items.catalogue is not None)
            self.lists[name] = Measurement(items, depth_of(with_defaults(gates)))
            self._reviews[name] = _Review(gates, origin)
        self._judged: _Judged | None = None

    async def about(self, tally: Tally) -> dict[str, Any]:
        """Return origin and verdicts, once lists are measured."""
        live, verdicts = await self._judge_once(tally.counts, tally.popular)
        if not verdicts:
            return self._about
        against = None if live is None else live.id
        gates = GateRecord(forced=self._settings.force, against=against, verdicts=tuple(verdicts))
        return self._about | {"gates": gates.to_record()}

    async def refused_by(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the gates that failed, by name, now or when the draft was begun."""
        failed = list[str]()
        if not self._is_forced(manifest):
            judged = await self._judge_once(manifest.counts, manifest.popular_keys)
            failed = [verdict.gate for verdict in judged.verdicts if not verdict.passed]
        return tuple(dict.fromkeys((*manifest.refused_by, *failed)))

    async def refusal(self, manifest: Manifest) -> str:
        """Return why the release may not go live, and what to do; empty if it may."""
        live, verdicts = await self._judge_once(manifest.counts, manifest.popular_keys)
        failed = failures(verdicts)
        if not failed or self._is_forced(manifest):
            return ""
        place = PLACES[self._settings.arm]
        stays = "" if live is None else f", and {live.id} still is"
        return (
            f"{failed}; release {manifest.release} was written and is not {place.name}{stays}; "
            f"{remedies(verdicts, AS_FLAGS)}only if it may go live as it is, publish again with --force, or activate "
            f"it: {place.activation(manifest.release, force=True)}"
        )

    def _is_forced(self, manifest: Manifest) -> bool:
        """Whether this publish, and the one that began the draft, go live despite failed gates."""
        return self._settings.force and manifest.origin.gates.forced

    async def _judge_once(self, counts: Mapping[str, int], popular_keys: Sequence[str]) -> _Judged:
        """Return the verdicts of all gates on all lists, judged once; later calls return those of the first.

        *counts* are the numbers of rows by kind, and *popular_keys* the keys of popular lists, of the new release.
        """
        if self._judged is None:
            with timed(self._steps, "gates"):
                live = (await self._reader.catalogue()).ref_of(self._settings.arm)
                verdicts = list[GateVerdict]()
                for name, stored in stored_names(self._reviews).items():
                    self._count_rows(name, stored, counts, popular_keys)
                    verdicts += await self._judge_list(name, stored, live)
                if live is not None:
                    columns = Origin.of(self._about).item_attributes.columns
                    verdicts += await compare_names(self.lists, columns, self._reader, live)
                self._judged = _Judged(live, verdicts)
        return self._judged

    def _count_rows(self, name: str, stored: str, counts: Mapping[str, int], popular_keys: Sequence[str]) -> None:
        """Add the numbers of a list's similar items and segments to its measurement."""
        prefix = prefix_of(POPULAR, stored)
        measured = self.lists[name]
        measured.similar_lists = counts.get(prefix_of(ITEM, stored)[:-1], 0)
        measured.segments = {key.removeprefix(prefix) for key in popular_keys if key.startswith(prefix)}

    async def _judge_list(self, name: str, stored: str, live: ReleaseRef | None) -> list[GateVerdict]:
        """Judge the gates of the list *name*, by comparison with the release *live*, if there is one.

        *stored* is the list's name in keys, empty for the default one. If a release is live, gates by default are
        added.
        """
        review = self._reviews[name]
        gates = review.gates if live is None else with_defaults(review.gates)
        lists = self.lists[name]
        return await judge(gates, review.origin, lists, self._reader, live, name=name, is_default=not stored)


def _sources_by_name(source: AnySource | NamedLists) -> Mapping[str, AnySource | ListSource]:
    """Return the lists of a source by name; a source of one list has no name."""
    return source.sources if isinstance(source, NamedLists) else {"": source}


async def prefetched(batches: Iterator[list[Row]], seconds: dict[str, float]) -> AsyncGenerator[list[Row], None]:
    """Yield *batches*, computing the next one in a thread; *seconds* get the waiting time as `lists`."""
    compute = partial(asyncio.get_running_loop().run_in_executor, DaemonThreads(), next, batches, None)
    upcoming = compute()
    try:
        while True:
            with timed(seconds, "lists"):
                rows = await upcoming
            if rows is None:
                break
            upcoming = compute()
            yield rows
    finally:
        upcoming.cancel()
