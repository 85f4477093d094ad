"""Publishing lists as a release; a thread computes the next batch."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

from hotplate.offline.errors import GateFailed
from hotplate.offline.gates import (
    Gate,
    GateVerdict,
    check,
    depth_of,
    failures,
    judge,
    parse_gates,
    record,
    recorded,
    with_defaults,
)
from hotplate.offline.measurement import Items, Measurement, Observe
from hotplate.offline.threads import DaemonThreads
from hotplate.stores import publication
from hotplate.stores.catalogue import Arm, DraftRef, ReleaseId, ReleaseRef
from hotplate.stores.compression import default_encoding
from hotplate.stores.errors import HeldBack
from hotplate.stores.lifecycle import prune
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import ParallelWriters, PartContext, WriteResult, WrittenPart
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


@runtime_checkable
class ListSource(Source, Protocol):
    """Lists of a model, or imported ones."""

    def batches(self, observe: Observe = ...) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of key bytes, `meta` rows last; *observe* gets the users' lists."""


class PartedSource(Source, Protocol):
    """Lists that other processes write as parts of one draft."""

    def own(self) -> Iterator[list[Row]]:
        """Yield this process's rows, in order."""

    def sample(self) -> list[Row]:
        """Return typical rows for a compression dictionary."""

    async def write_parts(
        self, context: PartContext, lists: Measurement, observer: Observer | None, on_progress: OnProgress
    ) -> WrittenPart:
        """Write parts from 1 on, measure users' lists in *lists*, and return the sum; raises StoreError."""


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """How lists are published.

    encoding    `json` or `zstd`; None for the default of the store
    keep        number of previously live releases to keep
    resume      a draft to continue with the same lists and settings, as its writer if a DraftRef
    gates       gates, or bounds by name, as {"ndcg": 0.15}
    force       go live despite failed gates
    end_canary  end a running canary
    arm         the arm of a running experiment that gets the release
    """

    encoding: str | None = None
    activate: bool = True
    keep: int = 1
    resume: str | DraftRef | None = None
    gates: Sequence[Gate] | Mapping[str, float] = ()
    force: bool = False
    end_canary: bool = False
    arm: Arm = "A"

    @property
    def bounds(self) -> Sequence[Gate]:
        """The gates; raises SettingError."""
        return parse_gates(self.gates, "gates") if isinstance(self.gates, Mapping) else self.gates


@dataclass(frozen=True, slots=True)
class Written:
    """The result of one publish.

    erased    releases that were pruned
    steps     seconds by step, also outside of *seconds*
    refused   why the release is not live
    """

    result: WriteResult
    seconds: float
    erased: list[ReleaseId]
    steps: dict[str, float]
    refused: GateFailed | HeldBack | None = None


async def publish(
    source: ListSource | PartedSource,
    store: Store,
    settings: PublishSettings | None = None,
    *,
    live_in: Reader | None = None,
    observer: Observer | None = None,
    on_progress: OnProgress = unreported,
) -> Written:
    """Write all lists of *source* as one release of *store*, make it live, and prune old releases.

    If a gate fails, or another release is the canary, the release stays ready and nothing is pruned. Gates, given or by
    default (`gates.LEAST_KEPT`), compare with the arm's release in *live_in*, by default *store*. *observer* gets the
    charges of other processes, *on_progress* (rows written, rows in all). Raises StoreError, as HeldBack for arm B
    without an experiment, and SettingError for gates that cannot be judged.
    """
    settings, started, steps = settings or PublishSettings(), perf_counter(), dict[str, float]()
    (await (live_in or store).catalogue()).ref_of(settings.arm)
    review = _GateCheck(source, settings, store, live_in or store, steps)
    encoding, resume = settings.encoding or default_encoding(store), settings.resume
    if isinstance(source, ListSource):
        rows, others = source.batches(review.lists.add), None
    else:
        sample = [] if encoding == "json" else source.sample()
        rows = source.own()
        write = partial(source.write_parts, lists=review.lists, observer=observer, on_progress=on_progress)
        others = ParallelWriters(sample, write)
    result = await publication.publish(
        store,
        prefetched(rows, steps),
        plan=source.plan(),
        about=review.about,
        encoding=encoding,
        live=settings.activate,
        refused_by=review.refused_by,
        arm=settings.arm,
        end_canary=settings.end_canary,
        resume=ReleaseId(resume) if isinstance(resume, str) else resume,
        others=others,
        on_progress=on_progress,
    )
    steps |= result.seconds
    refusal = await review.refusal(result.manifest)
    refused = GateFailed(refusal, result) if refusal else result.held_back
    took, erased = perf_counter() - started, list[ReleaseId]()
    if refused is None:
        with timed(steps, "prune"):
            erased = await prune(store, keep=settings.keep)
    return Written(result, took, erased, steps, refused)


class _GateCheck:
    def __init__(
        self, source: Source, settings: PublishSettings, store: Store, reader: Reader, steps: dict[str, float]
    ) -> None:
        self._settings, self._own = settings, settings.bounds
        self._gates = with_defaults(self._own)
        self._store, self._reader, self._steps = store, reader, steps
        self._origin, items = source.about(), source.items()
        check(self._own, self._origin.get("metrics"), knows_catalogue=items.catalogue is not None)
        self.lists = Measurement(items, depth_of(self._gates))
        self._judged: tuple[ReleaseRef | None, list[GateVerdict]] | None = None

    async def about(self) -> dict[str, Any]:
        """Return origin and verdicts, once lists are measured."""
        live, verdicts = await self._judge()
        gates = {"gates": record(verdicts, live, forced=self._settings.force)} if verdicts else {}
        return self._origin | gates

    async def refused_by(self, manifest: Manifest) -> tuple[str, ...]:
        _, verdicts = await self._judge()
        is_forced = self._settings.force and recorded(manifest)[0]
        now = () if is_forced else tuple(each.gate for each in verdicts if not each.passed)
        return tuple(dict.fromkeys((*manifest.refused_by, *now)))

    async def refusal(self, manifest: Manifest) -> str:
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
                live = (await self._store.catalogue()).ref_of(self._settings.arm)
                gates = self._own if live is None else self._gates
                self._judged = live, await judge(gates, self._origin, self.lists, self._reader, live)
        return self._judged


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


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the wall time to *step* of *seconds*, even after an error."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds[step] = seconds.get(step, 0.0) + perf_counter() - started
