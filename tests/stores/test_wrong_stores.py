"""Stores that break one rule each of the contract: the suite fails with a sentence that names the method."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.store import CheckCatalogue, Plan, RecordChange, Row, Store, catalogue_changed
from hotplate.testing import OpenStore, StoreContract
from tests.support.memory_store import MemoryStore

suite = StoreContract()
STOPPED_AT = time.time()


async def others_run() -> None:
    """Wait as for a server, so that other tasks make some of their calls."""
    for _ in range(5):
        await asyncio.sleep(0)


class Handles:
    """Opens handles of a class that share the data of one store in memory."""

    def __init__(self, kind: type[MemoryStore]) -> None:
        self.kind = kind
        self.data = SimpleNamespace(**vars(kind()))

    def __call__(self) -> Store:
        handle = self.kind.__new__(self.kind)
        handle.__dict__ = vars(self.data)
        return handle


class OverwritesRecords(MemoryStore):
    """Writes records ahead of the catalogue, and compares none with `before`."""

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        if isinstance(old, bytes) or self.current.version != old.version:
            raise catalogue_changed()
        await asyncio.sleep(0)
        self.beside |= {change.name: change.after for change in records}
        await asyncio.sleep(0)
        await super().swap(old, new)


class SealsForAnyWriter(MemoryStore):
    async def seal(self, draft: DraftRef) -> None:
        self.find(draft).sealed = True


class StoppedClock(MemoryStore):
    async def catalogue(self) -> Catalogue:
        return replace(self.current, now=STOPPED_AT)


class CountingClock(MemoryStore):
    """Adds an hour at each read."""

    reads = 0

    async def catalogue(self) -> Catalogue:
        type(self).reads += 1
        return replace(self.current, now=self.clock() + 3600 * (self.reads - 1))


class UptimeClock(MemoryStore):
    async def catalogue(self) -> Catalogue:
        return replace(self.current, now=asyncio.get_running_loop().time())


class KeepsResumePoints(MemoryStore):
    points_by_incarnation: ClassVar[dict[str, dict[int, str]]] = {}

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        kept = self.releases.get(release.incarnation)
        await super().erase(release, check)
        if kept is not None:
            self.points_by_incarnation[release.incarnation] = kept.points

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        await super().create(draft, plan)
        self.find(draft).points |= self.points_by_incarnation.get(draft.incarnation, {})


class KeepsResumePointsOfTheNewest(KeepsResumePoints):
    """Numbers a release by those that it has, so that one after the newest takes over what its erasure has left."""

    points_by_incarnation: ClassVar[dict[str, dict[int, str]]] = {}

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        is_newest = list(self.releases)[-1:] == [release.incarnation]
        await super().erase(release, check)
        if not is_newest:
            self.points_by_incarnation.pop(release.incarnation, None)


class ChecksBeforePut(MemoryStore):
    """Checks the writer of a draft, and writes rows later."""

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        self._claimed(draft)
        await others_run()
        writer = self.find(draft).writer
        await super().put(draft._replace(writer=writer), rows, part)


class PutsAfterErasure(MemoryStore):
    """Checks that a draft is there, and writes rows later, wherever they belong."""

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        stored = self._claimed(draft)
        await others_run()
        self.releases.setdefault(draft.incarnation, stored)
        await super().put(draft, rows, part)


class ErasesWhatItListed(MemoryStore):
    """Lists the rows of a draft, and deletes these later."""

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await asyncio.sleep(0)
        await super().put(draft, rows, part)

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        check(await self.catalogue())
        stored = self.releases.get(release.incarnation)
        if stored is None:
            return
        listed = list(stored.rows)
        await others_run()
        for key in listed:
            del stored.rows[key]
        if not stored.rows:
            del self.releases[release.incarnation]


Contract = Callable[[OpenStore], Awaitable[None]]


@pytest.mark.parametrize(
    ("kind", "contract", "sentence"),
    [
        (OverwritesRecords, suite.test_one_of_many_concurrent_swaps_wins_with_its_record,
         "swap: one that lost has replaced a record"),
        (SealsForAnyWriter, suite.test_a_claimed_draft_takes_no_rows_from_its_earlier_writer,
         "put, resume_point or seal: the writer has lost the draft to another one"),
        (StoppedClock, lambda opened: suite.test_the_catalogue_has_the_time_of_a_clock(opened()),
         "catalogue: `now` stands still"),
        (CountingClock, lambda opened: suite.test_the_catalogue_has_the_time_of_a_clock(opened()),
         "catalogue: `now` stands still, or is not the time of a clock"),
        (UptimeClock, lambda opened: suite.test_the_catalogue_has_the_time_of_a_clock(opened()),
         "catalogue: `now` is not the time of a clock"),
        (KeepsResumePoints, lambda opened: suite.test_erase_removes_every_row_and_is_idempotent(opened, sealed=False),
         "erase: a resume point was left"),
        (KeepsResumePointsOfTheNewest,
         lambda opened: suite.test_erase_removes_every_row_and_is_idempotent(opened, sealed=False),
         "erase: a resume point was left"),
        (ChecksBeforePut, lambda opened: suite.test_no_row_is_put_by_a_writer_that_has_lost_its_draft(
            opened, erased=False), "put: a row was put into a draft that another claimed"),
        (PutsAfterErasure, lambda opened: suite.test_no_row_is_put_by_a_writer_that_has_lost_its_draft(
            opened, erased=True), "put or erase: a row was put into a draft that was erased"),
        (ErasesWhatItListed, lambda opened: suite.test_no_row_is_put_by_a_writer_that_has_lost_its_draft(
            opened, erased=True), "put or erase: a row was put into a draft that was erased"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
async def test_wrong_store_is_told_which_method_fails(
    kind: type[MemoryStore], contract: Contract, sentence: str
) -> None:
    with pytest.raises(AssertionError) as failed:
        await contract(Handles(kind))
    assert sentence in str(failed.value)
    assert "\n" not in sentence
    await contract_holds(contract)


async def contract_holds(contract: Contract) -> None:
    """The same test passes for the store without the fault."""
    await contract(Handles(MemoryStore))
