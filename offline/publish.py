"""Publishing lists as a release: the next ones are computed in a thread while the last ones are being written."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from hotplate.offline.errors import GateFailed
from hotplate.offline.gates import Gate, GateVerdict, check, depth_of, failures, judge, parse_gates, record, recorded
from hotplate.offline.measurement import Items, Measurement, Observe, ignore
from hotplate.offline.threads import DaemonThreads
from hotplate.stores import publication
from hotplate.stores.catalogue import DraftRef, ReleaseId, ReleaseRef
from hotplate.stores.compression import default_encoding
from hotplate.stores.errors import HeldBack
from hotplate.stores.lifecycle import prune
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import ParallelWriters, PartContext, WriteResult, WrittenPart
from hotplate.stores.store import Observer, Plan, Reader, Row, Store
from hotplate.stores.verification import OnProgress, unreported


class ListSource(Protocol):
    """Lists that can be published: those of a model, or imported ones."""

    def plan(self) -> Plan:
        """Return how many rows there are at most, and about how many bytes they take."""

    def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin."""

    def items(self) -> Items:
        """Return the items that the lists are made of."""

    def batches(self, observe: Observe = ...) -> Iterator[list[Row]]:
        """Yield all rows, of bodies, in ascending order of key bytes, a few thousand at a time; `meta` rows at the end.

        The lists of all users are observed, as they are computed.
        """


@runtime_checkable
class PartedSource(ListSource, Protocol):
    """A source whose lists other processes compute and write, as parts of one draft, all but a few."""

    is_written_in_parts: bool
    """Whether the store can be written so; else all rows come by `batches`."""

    def own(self) -> Iterator[list[Row]]:
        """Yield the rows that the others do not write, as `ListSource.batches` does."""

    def sample(self) -> list[Row]:
        """Return some rows like those that the others write, to learn a dictionary from."""

    async def write_parts(
        self, context: PartContext, lists: Measurement | None, observer: Observer | None, on_progress: OnProgress
    ) -> WrittenPart:
        """Have all parts written, from 1 on, or only summed up, and return what they add up to; raises StoreError.

        The users' lists are counted in *lists*. See `publish` of *observer* and *on_progress*.
        """


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """How lists become a release.

    encoding    `json` or `zstd`; None for what suits the store
    activate    whether the release goes live
    keep        so many releases that were live before the live one are not erased
    resume      a draft to go on with, as its writer if it is a DraftRef; the lists and the settings must be the same
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
    """What one publish did: *refused* is why it is not live, if gates or a canary said no; *erased* came after.

    *seconds* is how long the release took, *steps* what of that, and of what came before and after, is known by step.
    """

    result: WriteResult
    seconds: float
    erased: list[ReleaseId]
    steps: dict[str, float]
    refused: GateFailed | HeldBack | None = None


async def publish(
    source: ListSource,
    store: Store,
    settings: PublishSettings | None = None,
    *,
    live_in: Reader | None = None,
    observer: Observer | None = None,
    on_progress: OnProgress = unreported,
) -> Written:
    """Write all lists of *source* as one release of *store*, make it live, and erase what is no longer needed.

    If a gate fails, or another release is the canary, the release stays ready, and nothing is erased; the manifest
    keeps what gates said. They compare with what is live in *live_in*, by default in *store*. *observer* hears what
    those were charged who write parts of a PartedSource. *on_progress* is called with (lists written, lists in all).
    Raises SettingError, before anything is written, for gates that cannot be judged; StoreError as
    `hotplate.stores.publication.publish` does. The steps are the seconds that lists were waited for, gates were judged,
    the release was activated and others were erased.
    """
    settings, started, steps = settings or PublishSettings(), perf_counter(), dict[str, float]()
    review = _GateCheck(source, settings, store, live_in or store, steps) if settings.gates else None
    lists = None if review is None else review.lists
    encoding, resume = settings.encoding or default_encoding(store), settings.resume
    if isinstance(source, PartedSource) and source.is_written_in_parts:
        sample = [] if encoding == "json" else source.sample()
        rows = source.own()
        write = partial(source.write_parts, lists=lists, observer=observer, on_progress=on_progress)
        others = ParallelWriters(sample, write)
    else:
        rows, others = source.batches(ignore if lists is None else lists.add), None
    result = await publication.publish(
        store,
        prefetched(rows, steps),
        plan=source.plan(),
        about=source.about() if review is None else review.about,
        encoding=encoding,
        live=settings.activate if review is None else review.goes_live,
        refused_by=None if review is None else review.refused_by,
        end_canary=settings.end_canary,
        resume=ReleaseId(resume) if isinstance(resume, str) else resume,
        others=others,
        on_progress=on_progress,
    )
    steps |= result.seconds
    refusal = "" if review is None else await review.refusal(result.manifest)
    refused = GateFailed(refusal, result) if refusal else result.held_back
    took, erased = perf_counter() - started, list[ReleaseId]()
    if refused is None:
        with timed(steps, "prune"):
            erased = await prune(store, keep=settings.keep)
    return Written(result, took, erased, steps, refused)


class _GateCheck:
    """The gates of one publish: what is measured while lists are written, and what they say at its end."""

    def __init__(
        self, source: ListSource, settings: PublishSettings, store: Store, reader: Reader, steps: dict[str, float]
    ) -> None:
        self._settings, self._gates = settings, settings.bounds
        self._store, self._reader, self._steps = store, reader, steps
        self._origin, items = source.about(), source.items()
        check(self._gates, self._origin.get("metrics"), knows_catalogue=items.catalogue is not None)
        self.lists = Measurement(items, depth_of(self._gates))
        self._judged: tuple[ReleaseRef | None, list[GateVerdict]] | None = None

    async def about(self) -> dict[str, Any]:
        """Return what the manifest says of the release's origin, and what the gates said, once all is measured."""
        live, verdicts = await self._judge()
        return self._origin | {"gates": record(verdicts, live, forced=self._settings.force)}

    async def goes_live(self, manifest: Manifest) -> bool:
        """Return whether the release is to go live, and no gate keeps it from that."""
        return not await self.refusal(manifest) and self._settings.activate

    async def refused_by(self, manifest: Manifest) -> tuple[str, ...]:
        """Name the gates that failed now, or at the attempt that wrote the manifest; none for a forced release."""
        _, verdicts = await self._judge()
        is_forced = self._settings.force and recorded(manifest)[0]
        now = () if is_forced else tuple(each.gate for each in verdicts if not each.passed)
        return tuple(dict.fromkeys((*manifest.refused_by, *now)))

    async def refusal(self, manifest: Manifest) -> str:
        """Say which gates failed, and what to do; nothing if none did, or the release is forced and records that."""
        live, verdicts = await self._judge()
        failed = "" if self._settings.force and recorded(manifest)[0] else failures(verdicts)
        stays = "" if live is None else f", and {live.id} still is"
        return failed and (
            f"{failed}; release {manifest.release} was written and is not live{stays}; publish again "
            f"with --force, or activate it by hand: hotplate releases activate --force {manifest.release}"
        )

    async def _judge(self) -> tuple[ReleaseRef | None, list[GateVerdict]]:
        if self._judged is None:
            with timed(self._steps, "gates"):
                live = (await self._store.catalogue()).live_ref
                metrics = self._origin.get("metrics")
                self._judged = live, await judge(self._gates, metrics, self.lists, self._reader, live)
        return self._judged


async def prefetched(batches: Iterator[list[Row]], seconds: dict[str, float]) -> AsyncGenerator[list[Row], None]:
    """Yield *batches*; the next is computed in a thread at the same time, which is left behind if it is not wanted.

    How long they are waited for is added to *seconds* as `lists`.
    """
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


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the wall time of the block to that of *step* in *seconds*, however the block ends."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + perf_counter() - started
