"""Publishing lists as a release: the next ones are computed in a thread while the last ones are being written."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from offline.errors import GateFailed
from offline.gates import Gate, Verdict, check, depth_of, failures, judge, measure, record, recorded
from offline.measurement import Items, Measurement, Observe
from offline.stopwatch import timed
from offline.threads import DaemonThreads
from stores import lifecycle
from stores.catalogue import DraftRef, ReleaseId, ReleaseRef
from stores.lifecycle import WriteResult
from stores.manifest import Manifest
from stores.store import Plan, Reader, Row, Store

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
        """Yield all rows, of bodies, in ascending order of key bytes, a few thousand at a time.

        The lists of all users are observed, as they are computed.
        """
        ...


async def publish(
    source: ListSource,
    store: Store,
    *,
    encoding: str = "json",
    live: bool = True,
    resume: ReleaseId | DraftRef | None = None,
    gates: Sequence[Gate] = (),
    force: bool = False,
    live_in: Reader | None = None,
    on_progress: Progress = lambda _done, _total: None,
) -> WriteResult:
    """
    Write all lists of *source* as one release of *store*, and make it live unless *live* is false.

    With *resume*, continue that draft, which must be of the same lists and encoding, as its writer where a DraftRef is
    given. *on_progress* is called with (lists written, lists in all). Where one of *gates* fails, the release stays
    ready, unless *force* is given; the manifest keeps what they said. They compare with what is live in *store*, which
    is read in *live_in*, if that is given. Raises SettingError, before anything is written, for gates that cannot be
    judged; GateFailed where one of them failed; StoreError as `stores.lifecycle.publish` does. The result has the
    seconds that lists were waited for, gates were judged and the release was activated.
    """
    seconds = dict[str, float]()
    write = partial(
        lifecycle.publish, store, plan=source.plan(), encoding=encoding, resume=resume, on_progress=on_progress
    )
    if not gates:
        result = await write(prefetched(source.batches(), seconds), about=source.about(), live=live)
        return replace(result, seconds=seconds | result.seconds)
    review = _Review(source, gates, store, live_in or store, seconds, force=force)

    async def goes_live(manifest: Manifest) -> bool:
        return await review.passes(manifest) and live

    result = await write(prefetched(source.batches(review.observe), seconds), about=review.about, live=goes_live)
    result = replace(result, seconds=seconds | result.seconds)
    if not await review.passes(result.manifest):
        raise GateFailed(await review.sentence(result.manifest), result)
    return result


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
        self._lists = Measurement(items, depth_of(gates))
        self._judged: tuple[ReleaseRef | None, list[Verdict]] | None = None
        self.observe = self._lists.add

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
                measured = await measure(self._gates, self._origin.get("metrics"), self._lists, self._reader, live)
                self._judged = live, judge(measured, self._gates)
        return self._judged


async def prefetched(batches: Iterator[list[Row]], seconds: dict[str, float]) -> AsyncIterator[list[Row]]:
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
