"""Publishing lists as a release: the next ones are computed in a thread while the last ones are being written."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from offline.errors import GateFailed
from offline.gates import Gate, Verdict, check, depth_of, failures, judge, measure, parse_gates, record, recorded
from offline.measurement import Counts, Items, Measurement, Observe, ignore
from offline.stopwatch import timed
from offline.threads import DaemonThreads
from stores import lifecycle
from stores.catalogue import DraftRef, ReleaseId, ReleaseRef
from stores.compression import default_encoding
from stores.errors import CanaryRunning
from stores.lifecycle import WriteResult, prune
from stores.manifest import Manifest, Tally
from stores.parts import Assignment, OtherWriters, WrittenPart
from stores.store import Observer, Plan, Reader, Row, Store

Progress = Callable[[int, int], None]


class ListSource(Protocol):
    """Lists that can be published: those of a model, or imported ones."""

    def plan(self) -> Plan:
        """Return how many rows there are at most, and about how many bytes they take."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin."""
        ...

    def items(self) -> Items:
        """Return the items that the lists are made of."""
        ...

    def batches(self, observe: Observe = ...) -> Iterator[list[Row]]:
        """Yield all rows, of bodies, in ascending order of key bytes, a few thousand at a time; `meta` rows at the end.

        The lists of all users are observed, as they are computed.
        """
        ...


@dataclass(frozen=True, slots=True)
class MeasuredPart:
    """What one writer of a part did: what it wrote, counts of its users' lists where gates want them, and charges."""

    written: WrittenPart
    counts: Counts | None
    charged_ru: float = 0.0
    failures: tuple[str, ...] = ()
    """Of attempts, as an `Observer` counts them."""


class PartedSource(ABC):
    """Derived from by a source whose lists other processes compute and write, as parts of one draft, all but a few."""

    is_written_in_parts: bool
    """Whether the store can be written so; else all rows come by `batches`."""

    @abstractmethod
    def plan(self) -> Plan:
        """Return how many rows there are at most, and about how many bytes they take."""

    @abstractmethod
    def own(self) -> Iterator[list[Row]]:
        """Yield the rows that the others do not write, as `ListSource.batches` does."""

    @abstractmethod
    def sample(self) -> list[Row]:
        """Return some rows like those that the others write, to learn a dictionary from."""

    @abstractmethod
    async def write_parts(
        self, assignment: Assignment, depth: int | None, on_rows: Callable[[int], None]
    ) -> list[MeasuredPart]:
        """Have all parts written, from 1 on, or only summed up; *on_rows* is called with the rows done so far.

        Given a *depth*, the first items of some users' lists are kept, and lists are counted. Raises StoreError.
        """


async def publish(
    source: ListSource,
    store: Store,
    *,
    encoding: str = "json",
    live: bool = True,
    end_canary: bool = False,
    resume: ReleaseId | DraftRef | None = None,
    gates: Sequence[Gate] = (),
    force: bool = False,
    live_in: Reader | None = None,
    observer: Observer | None = None,
    on_progress: Progress = lambda _done, _total: None,
) -> WriteResult:
    """
    Write all lists of *source* as one release of *store*, and make it live unless *live* is false.

    While another release is the canary it stays ready, and the result says so; with *end_canary*, that ends instead.

    With *resume*, continue that draft, which must be of the same lists and encoding, as its writer where a DraftRef is
    given. *on_progress* is called with (lists written, lists in all). Where one of *gates* fails, the release stays
    ready, unless *force* is given; the manifest keeps what they said. They compare with what is live in *store*, which
    is read in *live_in*, if that is given. *observer* hears what those were charged who write parts of a PartedSource.
    Raises SettingError, before anything is written, for gates that cannot be judged; GateFailed where one of them
    failed; StoreError as `stores.lifecycle.publish` does. The result has the seconds that lists were waited for, gates
    were judged and the release was activated.
    """
    seconds = dict[str, float]()
    write = partial(
        lifecycle.publish,
        store,
        plan=source.plan(),
        encoding=encoding,
        end_canary=end_canary,
        resume=resume,
        on_progress=on_progress,
    )
    review = _Review(source, gates, store, live_in or store, seconds, force=force) if gates else None
    if isinstance(source, PartedSource) and source.is_written_in_parts:
        sample = [] if encoding == "json" else source.sample()
        rows = source.own()
        others = OtherWriters(sample, partial(_write_parts, source, review, observer, on_progress))
    else:
        rows, others = source.batches(ignore if review is None else review.lists.add), None
    if review is None:
        result = await write(prefetched(rows, seconds), about=source.about(), live=live, others=others)
        return replace(result, seconds=seconds | result.seconds)

    async def goes_live(manifest: Manifest) -> bool:
        return await review.passes(manifest) and live

    result = await write(prefetched(rows, seconds), about=review.about, live=goes_live, others=others)
    result = replace(result, seconds=seconds | result.seconds)
    if not await review.passes(result.manifest):
        raise GateFailed(await review.sentence(result.manifest), result)
    return result


async def _write_parts(
    source: PartedSource,
    review: "_Review | None",
    observer: Observer | None,
    on_progress: Progress,
    assignment: Assignment,
) -> WrittenPart:
    """Have *source* write its parts, and add up what comes back of them."""
    total, depth = source.plan().rows, None if review is None else review.depth
    everything, rows = Tally(), 0
    for part in await source.write_parts(assignment, depth, lambda done: on_progress(min(done, total), total)):
        everything.merge(part.written.tally)
        rows += part.written.rows
        if review is not None and part.counts is not None:
            review.lists.merge(part.counts)
        if observer is not None:
            observer.charged(part.charged_ru)
            for kind in part.failures:
                observer.failed(kind)
    return WrittenPart(everything, rows)


class _Review:
    """The gates of one publish: what is measured while lists are written, and what they say at its end."""

    def __init__(
        self,
        source: ListSource,
        gates: Sequence[Gate],
        store: Store,
        reader: Reader,
        seconds: dict[str, float],
        *,
        force: bool,
    ) -> None:
        self._origin, items = source.about(), source.items()
        check(gates, self._origin.get("metrics"), knows_catalogue=items.catalogue is not None)
        self._gates = gates
        self._store = store
        self._reader = reader
        self._seconds = seconds
        self._force = force
        self.depth = depth_of(gates)
        self.lists = Measurement(items, self.depth)
        self._judged: tuple[ReleaseRef | None, list[Verdict]] | None = None

    async def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin, and what the gates said, once all is measured."""
        live, verdicts = await self._judge()
        return self._origin | {"gates": record(verdicts, live, forced=self._force)}

    async def passes(self, manifest: Manifest) -> bool:
        """Return whether no gate failed, or the release is forced and its manifest says so."""
        _, verdicts = await self._judge()
        return all(verdict.passed for verdict in verdicts) or (self._force and recorded(manifest)[0])

    async def sentence(self, manifest: Manifest) -> str:
        """Say which gates failed, and what to do."""
        live, verdicts = await self._judge()
        stays = "" if live is None else f", and {live.id} still is"
        return (
            f"{failures(verdicts)}; release {manifest.release} was written and is not live{stays}; publish again "
            f"with --force, or activate it by hand: hotplate releases activate {manifest.release}"
        )

    async def _judge(self) -> tuple[ReleaseRef | None, list[Verdict]]:
        if self._judged is None:
            with timed(self._seconds, "gates"):
                live = (await self._store.catalogue()).live_ref
                measured = await measure(self._gates, self._origin.get("metrics"), self.lists, self._reader, live)
                self._judged = live, judge(measured, self._gates)
        return self._judged


async def prefetched(batches: Iterator[list[Row]], seconds: dict[str, float]) -> AsyncGenerator[list[Row], None]:
    """
    Yield *batches*; the next is computed in a thread meanwhile, which is left behind where it is not wanted.

    How long they are waited for is added to *seconds* as `lists`.
    """
    threads, loop = DaemonThreads(), asyncio.get_running_loop()

    def compute() -> list[Row] | None:
        return next(batches, None)

    upcoming = loop.run_in_executor(threads, compute)
    try:
        while True:
            with timed(seconds, "lists"):
                rows = await upcoming
            if rows is None:
                break
            upcoming = loop.run_in_executor(threads, compute)
            yield rows
    finally:
        upcoming.cancel()


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """
    How lists become a release.

    encoding    `json` or `zstd`; None for what suits the store
    activate    whether the release goes live
    keep        so many releases that were live before the live one are not erased
    resume      a draft to go on with; the input and the settings must be the same
    gates       what the release must hold to go live: gates, or bounds by name, as {"ndcg": 0.15, "coverage": 0.3}
    force       whether it goes live all the same; the release records that
    end_canary  whether it goes live while another release is the canary, which ends
    """

    encoding: str | None = None
    activate: bool = True
    keep: int = 1
    resume: str | DraftRef | None = None
    gates: Sequence[Gate] | Mapping[str, float] = ()
    force: bool = False
    end_canary: bool = False

    @property
    def bounds(self) -> Sequence[Gate]:
        """The gates; SettingError for a name or a bound that makes no sense."""
        return parse_gates(self.gates, "gates") if isinstance(self.gates, Mapping) else self.gates


@dataclass(frozen=True, slots=True)
class Written:
    """
    What one publish did: *refused* is why it is not live, if gates or a canary said no; *erased* came after.

    *seconds* is how long the release took, *steps* what of that, and of what came before and after, is known by step.
    """

    result: WriteResult
    seconds: float
    erased: list[ReleaseId]
    steps: dict[str, float]
    refused: GateFailed | CanaryRunning | None = None


async def write(
    source: ListSource,
    store: Store,
    settings: PublishSettings,
    *,
    live_in: Reader | None = None,
    observer: Observer | None = None,
    on_progress: Progress = lambda _done, _total: None,
) -> Written:
    """Write all lists of *source* as `publish` does, and erase what is no longer needed."""
    resume, started = settings.resume, perf_counter()
    try:
        result = await publish(
            source,
            store,
            encoding=settings.encoding or default_encoding(store),
            live=settings.activate,
            end_canary=settings.end_canary,
            resume=ReleaseId(resume) if isinstance(resume, str) else resume,
            gates=settings.bounds,
            force=settings.force,
            live_in=live_in,
            observer=observer,
            on_progress=on_progress,
        )
    except GateFailed as refused:
        return Written(refused.result, perf_counter() - started, [], refused.result.seconds, refused)
    took, steps = perf_counter() - started, dict(result.seconds)
    if result.held_back is not None:
        return Written(result, took, [], steps, result.held_back)
    with timed(steps, "prune"):
        erased = await prune(store, keep=settings.keep)
    return Written(result, took, erased, steps)
