"""The life of releases with processes that interleave between any two primitives of a store; a test runs it over each.

Two publishers, an operator, a pruner and two readers, one of them perhaps behind a stale replica, run the real code.
Hypothesis chooses the process that continues, lost requests and replies, kills, pauses of all processes, and restores
of the store from an earlier copy: of everything, or of the catalogue only.

A restore may damage releases. Until it is pruned, a release that was being written or erased at the time of the copy is
`excused` from being complete, and one without data in the copy is `lost`.
"""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hotplate.base.recommendations import Item
from hotplate.serve.releases.follower import Follower
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores import lifecycle as life
from hotplate.stores import publication, transfer
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import (
    GRACE_S,
    LEASE_S,
    Catalogue,
    DraftRef,
    Release,
    ReleaseId,
    ReleaseRef,
    State,
    UserShare,
    follows,
)
from hotplate.stores.connect import connect
from hotplate.stores.encoding import OFFSET_BYTES, RowKey, encode
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.redis.errors import RowsLost
from hotplate.stores.store import CheckCatalogue, Plan, ReadResult, Row, Store, not_found
from hotplate.stores.verification import verify
from tests.support.cosmos_simulation import SimulatedAccount
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer, copied, put_back
from tests.support.stepwise import EPOCH_S, Process, StepwiseLoop, sleep

T = TypeVar("T")

KEYS = ["popular:", "user:1", "user:2"]

# The writer of a release that is being erased.
ERASED = "nobody: it is being erased"
PLAN = Plan(len(KEYS), 300)

# The time within which readers follow any change of the store.
FOLLOWED_S = 45.0

# The next turns, a byte each: the process, the number of primitives, and whether the last waiting one is first.
TURNS = st.binary(min_size=2, max_size=8)
STEPS = (1, 1, 2, 2, 3, 5, 8, 13, 21, 60)

# What a publisher may do, may have done before, and the operator may do.
PUBLISHES = ("publish", "publish ready", "resume", "resume", "resume with other lists", "copy", "copy", "repair")
PAST = ("publish", "publish ready", "killed", "paused", *PUBLISHES[2:], "grace passes", "a copy is made")
OPERATIONS = ("activate", "activate", "rollback", "start_canary", "start_canary", "promote", "abort")


def rows_of(content: str) -> list[Row]:
    """Return bodies that differ from those of any other release, and from one another."""
    return [Row(key, encode([Item(id=f"{content} {key}", score=1.0)])) for key in KEYS]


async def batches_of(content: str) -> AsyncIterator[Sequence[Row]]:
    rows = rows_of(content)
    yield rows[:2]
    yield rows[2:]


def content_of(key: str, body: bytes) -> str:
    """Return which publish an opened list is of; fails for a list of another key."""
    content, _, of = orjson.loads(body[OFFSET_BYTES:])["id"].partition(" ")
    assert of == key, f"the list of {of!r} was read for {key!r}"
    return str(content)


class Source(MemoryStore):
    """What copies and repairs are made from: two releases, the same in all histories."""

    def __init__(self) -> None:
        super().__init__(lambda: EPOCH_S)
        self.contents = dict[ReleaseId, str]()
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        for content in ("s0", "s1"):
            done = await publication.publish_release(self, batches_of(content), plan=PLAN)
            self.contents[done.manifest.release] = content


async def _resume(store: Store, draft: ReleaseId, content: str) -> None:
    taken_over = await publication.take_over(store, draft)
    await publication.publish_release(store, batches_of(content), plan=PLAN, draft=taken_over)


class Replica(MemoryStore):
    """A server that follows the store by fits and starts: its catalogue and sealed releases as they once were."""

    async def catalogue(self) -> Catalogue:
        return replace(await super().catalogue(), primary=False)

    async def catch_up(self, store: Store) -> None:
        catalogue = await store.catalogue()
        wanted = {entry.incarnation: entry.ref for entry in catalogue.releases if entry.state is not State.DRAFT}
        for gone in self.releases.keys() - wanted.keys():
            del self.releases[gone]
        for incarnation, release in wanted.items():
            try:
                rows = [row async for row in store.scan(release)]
            except StoreError:
                self.releases.pop(incarnation, None)
            else:
                await self.create(draft := DraftRef(*release, writer="replica"), PLAN)
                await self.put(draft, rows)
        self.current = catalogue


class ServerLike(MemoryStore):
    """Erases as a server does: what makes it a release first, then row by row, until it is a release again."""

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        check(await self.catalogue())
        if (stored := self.releases.get(release.incarnation)) is None:
            return
        stored.writer = ERASED
        stored.sealed = False
        stored.points = {}
        while stored.rows:
            stored.rows.popitem()
            await asyncio.sleep(0)
            if (now := self.releases.get(release.incarnation)) is None:
                return
            if now.writer != ERASED:
                raise ReleaseConflict("it is there again")
            stored = now
        del self.releases[release.incarnation]

    def find(self, release: ReleaseRef | DraftRef) -> Any:  # noqa: ANN401 -- a private type
        if (stored := super().find(release)).writer == ERASED:
            raise not_found(release)
        return stored


class Interleaved(RuleBasedStateMachine):
    """Over a store in a dict; other stores say how they are opened, copied and put back."""

    histories = steps = 0
    """How many there were, in all."""

    publishing = (0, 1)
    readers_at = (2, 3)
    operator = 4
    pruner = 5
    """Who is who among `processes`."""

    refuses_late_writers = True
    """Whether the store refuses all that a writer puts after it has lost its draft, rather than only changes of it."""

    erases_conditionally = True
    """Whether the erasure of a release can depend on the catalogue."""

    source: Source | None = None

    def __init__(self) -> None:
        super().__init__()
        type(self).histories += 1
        self.patch = pytest.MonkeyPatch()
        drawn = itertools.count(1)
        counted = SimpleNamespace(token_hex=lambda n: f"{next(drawn):0{2 * n}x}"[-2 * n :])
        for module in (life, publication):  # makes a history repeatable
            self.patch.setattr(module, "secrets", counted)
        self.patch.setattr(asyncio, "sleep", sleep)
        self.patch.setattr(changes, "DRAFT_GRACE_S", GRACE_S)  # readers poll too often for the time to pass
        if Interleaved.source is None:
            Interleaved.source = Source()
        self.loop = StepwiseLoop()
        self.store = self.open()
        self.contents = itertools.count(1)
        self.replica = Replica(self.clock)
        self.truth = Catalogue()
        """The catalogue as it was swapped or put back last."""
        self.content = dict[tuple[str, str], str]()
        """Which publish the lists of an incarnation are of that a writer finished, once they were read."""
        self.begun = dict[str, str]()
        """Which publish an incarnation was begun for."""
        self.owners = dict[str, Process]()
        """Who drew a writer's token."""
        self.bereft = set[Process]()
        """Whose draft others have dropped or taken over, once its lease had lapsed."""
        self.claims = dict[str, Process]()
        """Who claimed an incarnation in the store last."""
        self.writers = dict[str, str]()
        """With which token it was claimed or written last."""
        self.flips = dict[Process, int]()
        """How often a process has changed what is live, since it started what it does."""
        self.left_live_at = dict[str, float]()
        self.committed = list[Release]()
        """What is still to be looked at after a step."""
        self.erased = set[str]()
        self.lost = set[str]()
        self.excused = set[str]()
        self.saved = list[tuple[Catalogue, Any]]()
        self.restored_at = -1.0
        self.wrong = list[str]()
        self.followers = dict[int, Follower]()
        self.seen = dict[int, Catalogue | None]()
        self.mixed = set[ReleaseId]()
        """Drafts that somebody resumed with other lists."""
        self.publishes = dict[Process, str]()
        """Which lists a publisher publishes."""
        self.processes = [self.process() for _ in range(6)]
        for reader in self.readers_at:
            self.start_reader(reader)

    # What differs from store to store.

    def open(self) -> Store:
        """Open a handle; the first is the test's own."""
        return ServerLike(self.clock) if not hasattr(self, "store") else self.store

    async def save(self) -> Any:  # noqa: ANN401 -- copies differ by store
        assert isinstance(self.store, MemoryStore)
        return deepcopy(self.store.releases)

    async def put_back(self, saved: Any) -> None:  # noqa: ANN401 -- as above
        """Put the data back to a copy; the catalogue follows."""
        assert isinstance(self.store, MemoryStore)
        self.store.releases = deepcopy(saved)

    async def close(self) -> None:
        """Close all handles, for good."""
        for process in self.processes:
            await process.handle.close()
        await self.store.close()

    # Processes

    def clock(self) -> float:
        return EPOCH_S + self.loop.time()

    def process(self) -> Process:
        return Process(self.loop, self.open(), self)

    def start_reader(self, reader: int) -> None:
        process = self.processes[reader]
        follower = Follower(process.store)
        self.followers[reader] = follower
        self.seen[reader] = None
        process.start(follower.run())

    def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what waits for nothing but the store."""
        return self.loop.finish(work)

    @initialize(past=st.lists(st.sampled_from(PAST), max_size=5), stops=st.integers(1, 48), goes_on=st.integers(1, 48))
    def something_is_live(self, past: list[str], stops: int, goes_on: int) -> None:
        """Run a past in which a publisher stopped after *stops* steps, and its successor has made *goes_on* steps."""
        publisher = self.processes[0]
        for verb in ("publish", *past):
            if verb == "grace passes":
                self.loop.advance(GRACE_S)
            elif verb == "a copy is made":
                self.make_copy()
            elif verb in ("killed", "paused"):
                self.stop_amid_publish(stops)
                if verb == "killed":
                    self.kill(1)
            elif verb.startswith("resume"):
                self.run_to_end(publisher)
                self.stop_amid_publish(stops)
                self.publish(publisher, verb, 0)
                for _ in range(goes_on):
                    if publisher.is_waiting:
                        publisher.step()
            else:
                self.run_to_end(publisher)
                self.publish(publisher, verb, 0)
                self.run_to_end(publisher)
            self.look()
        self.make_copy()

    def run_to_end(self, process: Process) -> None:
        process.run_to_end()
        self.look()

    def stop_amid_publish(self, stops_after: int) -> None:
        """Start a publisher, or let it go on, and pause it until its lease has lapsed."""
        process = self.processes[1]
        if not process.tasks:
            self.publish(process, "publish", 0)
        for _ in range(stops_after):
            if process.is_waiting:
                process.step()
        self.loop.advance(LEASE_S)

    @rule(publisher=st.sampled_from(publishing), verb=st.sampled_from(PUBLISHES), which=st.integers(0, 3), turns=TURNS)
    def a_publisher_starts(self, publisher: int, verb: str, which: int, turns: bytes) -> None:
        self.go_on(turns)
        if not self.processes[publisher].tasks:
            self.publish(self.processes[publisher], verb, which)

    def publish(self, process: Process, verb: str, which: int) -> None:
        assert self.source is not None
        store = process.store
        content = f"c{next(self.contents)}"
        drafts = [entry for entry in self.truth.releases if entry.state is State.DRAFT]
        copied = list(self.source.contents)[which % 2]
        if verb.startswith("resume") and not drafts:
            verb = "publish"
        self.publishes[process] = content
        if verb.startswith("resume"):
            draft = drafts[which % len(drafts)]
            if verb == "resume":
                content = self.begun.get(draft.incarnation, content)
            else:
                self.mixed.add(draft.id)
            process.start(_resume(store, draft.id, content))
        elif verb == "copy":
            process.start(transfer.copy(self.source, store, copied))
        elif verb == "repair":
            process.start(transfer.repair(store, self.source, copied))
        else:
            activation = publication.LIVE if verb == "publish" else None
            process.start(publication.publish_release(store, batches_of(content), plan=PLAN, activation=activation))

    @rule(verb=st.sampled_from(OPERATIONS), which=st.integers(0, 5), turns=TURNS)
    def the_operator_starts(self, verb: str, which: int, turns: bytes) -> None:
        self.go_on(turns)
        process = self.processes[self.operator]
        if process.tasks:
            return
        if verb in ("rollback", "promote", "abort"):
            process.start(getattr(life, verb)(process.store))
        elif self.truth.releases:
            release = self.truth.releases[which % len(self.truth.releases)].id
            if verb == "activate":
                process.start(life.activate(process.store, release))
            else:
                process.start(life.start_canary(process.store, release, percent=which + 1))

    @rule(keep=st.sampled_from([1, 1, 0]), keep_ready_s=st.sampled_from([None, None, GRACE_S]), turns=TURNS)
    def the_pruner_starts(self, keep: int, keep_ready_s: float | None, turns: bytes) -> None:
        self.go_on(turns)
        process = self.processes[self.pruner]
        if not process.tasks:
            process.start(life.prune(process.store, keep=keep, keep_ready_s=keep_ready_s))

    @rule(reader=st.sampled_from(readers_at), turns=TURNS)
    def a_reader_is_requested(self, reader: int, turns: bytes) -> None:
        self.go_on(turns)
        process = self.processes[reader]
        follower = self.followers[reader]
        if follower.live is not None and len(process.tasks) == 1:
            user = KEYS[1 + sum(turns) % 2]
            process.start(
                self.request(process, follower, follower.release_for(RowKey.parse(user)) or follower.live, user)
            )

    async def request(self, process: Process, follower: Follower, release: ServedRelease, user: str) -> None:
        """Read all lists as a tier does: of the served release, or of the live one if that is gone."""
        try:
            results = await process.store.get_many(release.ref, KEYS)
        except ReleaseNotFound:
            await follower.refresh()
            release = follower.release_for(RowKey.parse(user)) or release
            results = await process.store.get_many(release.ref, KEYS)
        self.check_lists(release, results)

    @rule(turns=TURNS)
    def all_go_on(self, turns: bytes) -> None:
        self.go_on(turns)

    def go_on(self, turns: bytes) -> None:
        for byte in turns:
            order, who = divmod(byte, 6)
            last, steps = divmod(order, len(STEPS))
            process = self.processes[who]
            for _ in range(STEPS[steps]):
                if not process.is_waiting:
                    break
                process.step(last=last == 1)
                self.look()

    # Faults

    @rule(who=st.integers(0, 5), turns=TURNS)
    def a_request_or_a_reply_is_lost(self, who: int, turns: bytes) -> None:
        self.go_on(turns)
        if self.processes[who].is_waiting:
            self.processes[who].step(lost=True)
            self.look()

    @rule(who=st.integers(0, 5), turns=TURNS)
    def one_is_killed(self, who: int, turns: bytes) -> None:
        self.go_on(turns)
        self.kill(who)

    def kill(self, who: int) -> None:
        self.processes[who].kill()
        self.finish(self.processes[who].handle.close())
        self.processes[who] = self.process()
        if who in self.readers_at:
            self.start_reader(who)
        self.look()

    @rule(
        seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S, GRACE_S]), running=st.sets(st.integers(0, 5)), turns=TURNS
    )
    def time_passes(self, seconds: float, running: set[int], turns: bytes) -> None:
        self.go_on(turns)
        if running:
            first, *later = (self.processes[who] for who in sorted(running))
            first.run(seconds, *later)
        else:
            self.loop.advance(seconds)
        self.look()

    @rule(turns=TURNS)
    def a_copy_is_made(self, turns: bytes) -> None:
        self.go_on(turns)
        self.make_copy()

    def make_copy(self) -> None:
        if self.truth.generation:
            self.saved = [*self.saved[-2:], (self.truth, self.finish(self.save()))]

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 2), whole=st.booleans(), turns=TURNS)
    def the_store_is_put_back(self, which: int, *, whole: bool, turns: bytes) -> None:
        self.go_on(turns)
        catalogue, data = self.saved[which % len(self.saved)]
        self.finish(self.restore(catalogue, data if whole else None))
        self.look()

    async def restore(self, catalogue: Catalogue, data: Any) -> None:  # noqa: ANN401 -- as above
        if data is not None:
            await self.put_back(data)
        try:
            await self.store.swap(await self.store.catalogue(), catalogue)
        except RowsLost:  # Redis refuses to commit a release that is a draft again
            assert data is None
            return
        self.truth = catalogue
        self.restored_at = self.loop.time()
        for process in self.processes:
            process.has_read = False
        self.left_live_at.clear()
        self.claims.clear()
        self.flips.clear()
        self.lost = set()
        self.excused = set()
        for entry in catalogue.releases:
            try:
                await verify(self.store, entry.ref)
            except StoreError:
                self.lost.add(entry.incarnation)
            else:
                self.erased.discard(entry.incarnation)
            if entry.state in (State.DRAFT, State.DROPPING):
                self.excused.add(entry.incarnation)
        present = await self.store.incarnations()
        self.excused |= {release for release in present if catalogue.entry(release) is None}
        self.notify(self.store)

    @rule(turns=TURNS)
    def the_replica_catches_up(self, turns: bytes) -> None:
        self.go_on(turns)
        self.finish(self.replica.catch_up(self.store))
        self.notify(self.replica)

    @rule(turns=TURNS)
    def the_second_reader_is_led_to_a_replica_or_back(self, turns: bytes) -> None:
        self.go_on(turns)
        self.lead_second_reader()

    def lead_second_reader(self) -> None:
        handle = self.processes[self.readers_at[1]].store
        handle.reads = self.processes[self.readers_at[1]].handle if handle.reads is self.replica else self.replica
        handle.changed.set()
        self.loop.settle()

    @rule(turns=TURNS)
    def readers_run_until_they_must_have_followed(self, turns: bytes) -> None:
        self.go_on(turns)
        self.run_readers()

    def run_readers(self) -> None:
        first, second = (self.processes[reader] for reader in self.readers_at)
        first.run(FOLLOWED_S, second)
        self.look()
        for reader in self.readers_at:
            if self.processes[reader].store.reads is not self.replica:
                self.check_followed(reader)

    def notify(self, where: Store) -> None:
        for process in self.processes:
            if (process.store.reads is self.replica) == (where is self.replica):
                process.store.changed.set()

    # What must hold, at the moment that it happens

    def erasing(self, process: Process, release: ReleaseRef) -> None:
        entry = self.truth.entry(release.incarnation)
        left = self.left_live_at.get(release.incarnation)
        if entry is None or entry.state is not State.DROPPING:
            if not self.erases_conditionally and not process.has_read:
                # The catalogue was put back between the last look at it and the deletion.
                if entry is not None:
                    self.lost.add(release.incarnation)
            else:
                state = "not in the catalogue" if entry is None else entry.state
                self.wrong.append(f"{release} was erased by {process}, which is {state}")
        elif left is not None and self.clock() < left + GRACE_S:
            self.wrong.append(f"{release} was erased within its grace")
        self.erased.add(release.incarnation)

    def claimed(self, process: Process, draft: DraftRef) -> None:
        self.claims[draft.incarnation] = process
        self.writers[draft.incarnation] = draft.writer

    def put(self, process: Process, draft: DraftRef) -> None:
        if self.refuses_late_writers and self.claims.get(draft.incarnation, process) is not process:
            self.wrong.append(f"{draft} was written after another had claimed it")
        self.writers[draft.incarnation] = draft.writer

    def swapped(self, process: Process, old: Catalogue, new: Catalogue) -> None:
        if old.version != self.truth.version:
            self.wrong.append(f"a swap was made from {old.version}, when {self.truth.version} was there")
        if new.generation != old.generation + 1:
            self.wrong.append(f"generation {new.generation} followed {old.generation}")
        if old.live_ref != new.live_ref:
            self.note_live(process, old, new)
        if sum(entry.state is State.LIVE for entry in new.releases) > 1:
            self.wrong.append("two releases are live")
        for entry in new.releases:
            before = old.entry(entry.incarnation)
            if before is None:
                if entry.state is State.DRAFT:
                    self.owners[entry.writer] = process
                    self.begun[entry.incarnation] = self.intended(process, entry.id)
            elif before.state is State.DRAFT:
                self.check_draft(process, before, entry)
            elif before.ref in old.served and entry.state is State.DROPPING:
                self.wrong.append(f"{entry.id} was dropped while it was live, or the canary")
        self.truth = new
        self.notify(self.store)

    def note_live(self, process: Process, old: Catalogue, new: Catalogue) -> None:
        self.flips[process] = self.flips.get(process, 0) + 1
        if self.flips[process] > 1:
            self.wrong.append("one request changed twice what is live")
        retired = None if old.live_ref is None else new.entry(old.live_ref.incarnation)
        if retired is not None and retired.superseded_at is not None:  # when the catalogue was read for the swap
            self.left_live_at[retired.incarnation] = retired.superseded_at
        if new.live_ref is not None:
            self.left_live_at.pop(new.live_ref.incarnation, None)

    def intended(self, process: Process, release: ReleaseId) -> str:
        assert self.source is not None
        return self.source.contents.get(release) or self.publishes[process]

    def check_draft(self, process: Process, before: Release, after: Release) -> None:
        """Check that only its writer changes a draft until the lease has lapsed."""
        lapsed = (before.lease_until or 0.0) <= self.clock()
        owner = self.owners.get(before.writer)
        is_taken = after.writer != before.writer
        is_dropped = after.state is State.DROPPING
        if owner is not process and (is_taken or after.state is not State.DRAFT):
            if owner is not None:
                self.bereft.add(owner)
            if not lapsed or not (is_taken or is_dropped):
                self.wrong.append(f"{after.id} was taken over, or made {after.state}, by another than its writer")
        if is_taken:
            self.owners[after.writer] = process
        if after.state not in (State.DRAFT, State.DROPPING):
            self.committed.append(after)

    # What must hold after every step

    def look(self) -> None:
        """Check the changes, and the lists that readers read."""
        type(self).steps += 1
        for process in self.processes:
            for error in process.ended():
                self.flips.pop(process, None)
                self.check_end(process, error)
        while self.committed:
            self.check_committed(self.committed.pop())
        for reader, follower in self.followers.items():
            self.check_reader(reader, follower)
        assert not self.wrong, self.wrong

    def check_end(self, process: Process, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, StoreError):
            raise AssertionError("a process ended by a defect") from error
        if isinstance(error, ReleaseCorrupt) and self.restored_at < 0 and process not in self.bereft:
            assert any(release in str(error) for release in self.mixed), error

    def check_committed(self, entry: Release) -> None:
        """Of a release that was committed, every list is there, and all are of one publish."""
        if entry.incarnation not in self.excused | self.lost | self.erased:
            self.finish(verify(self.store, entry.ref))

    def check_reader(self, reader: int, follower: Follower) -> None:
        seen = follower._followed
        before = self.seen[reader]
        if seen is not before:
            if before is not None:
                assert seen is not None
                restored = seen.primary and self.restored_at >= 0
                assert follows(seen, before) or restored, "a stale catalogue was followed"
            self.seen[reader] = seen
        if follower.live is None:
            assert seen is None or seen.live is None, "what was served is served no more"
            return
        for release in follower.releases:
            try:
                results = self.finish(self.processes[reader].store.reads.get_many(release.ref, KEYS))
            except ReleaseNotFound:
                is_replica = self.processes[reader].store.reads is self.replica
                assert is_replica or release.ref.incarnation in self.erased | self.lost or self.restored_at >= 0
                results = []
            self.check_lists(release, results)
        assert len({release.ref for release in follower.releases}) == len(follower.releases), "one is served as both"

    def check_lists(self, release: ServedRelease, results: Sequence[ReadResult]) -> None:
        """Each list is the one that was published under its key in this very release."""
        bodies = {"popular:": release.popular["popular:"]}
        incarnation = release.ref.incarnation
        for key, result in zip(KEYS[: len(results)], results, strict=True):
            assert result is not None or incarnation in self.excused | self.lost, f"{key} is missing in {release.ref}"
            if isinstance(result, bytes):
                bodies[key] = release.decode(key, result)
        assert self.source is not None
        if incarnation in self.excused or (self.restored_at >= 0 and self.writers.get(incarnation) != release.writer):
            return  # written by another since a restore: other lists, until this reader follows
        for key, body in bodies.items():
            content = content_of(key, body)
            written = incarnation, release.writer
            expected = self.source.contents.get(release.id) or self.content.setdefault(written, content)
            assert content == expected, f"{release.ref} gave a list of {content} and not of {expected}"

    def check_followed(self, reader: int) -> None:
        follower = self.followers[reader]
        live = self.truth.live_entry
        if live is None or live.incarnation in self.lost | self.excused:
            return
        assert follower.live is not None, follower.last_error
        assert (follower.live.ref, follower.live.writer) == (live.ref, live.writer), follower.last_error
        assert follower._followed is not None
        assert follower._followed.version == self.truth.version
        canary = self.truth.canary_entry
        if canary is None or canary.incarnation not in self.lost | self.excused:
            served = follower.canary
            users = served and (served.id, served.users)
            expected = self.truth.canary
            share = expected and (expected.release, UserShare.of(expected.percent, expected.salt))
            assert users == share, follower.findings

    # At the end

    def teardown(self) -> None:
        try:
            if not self.wrong:
                self.end_clean()
        finally:
            for process in self.processes:
                process.kill()
            self.finish(self.close())
            self.loop.close()
            self.patch.undo()

    def end_clean(self) -> None:
        """All but the readers stop, a last prune cleans up, and a new release is published and followed."""
        for who in range(len(self.processes)):
            if who not in self.readers_at:
                self.kill(who)
        if self.truth.canary is not None:
            operator = self.processes[self.operator]
            operator.start(life.abort(operator.store))
            self.run_to_end(operator)
        self.loop.advance(LEASE_S + GRACE_S)
        pruner = self.processes[self.pruner]
        pruner.start(life.prune(pruner.store))
        self.run_to_end(pruner)
        states = [entry.state for entry in self.truth.releases]
        assert {State.DRAFT, State.DROPPING, State.WITHDRAWN}.isdisjoint(states), states
        assert states.count(State.SUPERSEDED) <= 1
        present = set(self.finish(self.store.incarnations()))
        known = {entry.incarnation for entry in self.truth.releases}
        assert known - self.lost <= present <= known
        publisher = self.processes[0]
        self.publish(publisher, "publish", 0)
        self.run_to_end(publisher)
        second = self.processes[self.readers_at[1]].store
        if second.reads is self.replica:
            self.lead_second_reader()
        self.run_readers()
        assert self.followers[self.readers_at[0]].live is not None


class InterleavedOnDisk(Interleaved):
    """Over files, with a handle for each process."""

    def open(self) -> Store:
        if not hasattr(self, "store"):
            self.folder = Path(tempfile.mkdtemp())
        return LmdbStore(self.folder / "store", self.clock)

    async def save(self) -> Path:
        copy = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copytree(self.folder / "store", copy, dirs_exist_ok=True)
        return copy

    async def put_back(self, saved: Path) -> None:
        shutil.rmtree(self.folder / "store")
        shutil.copytree(saved, self.folder / "store")

    async def close(self) -> None:
        await super().close()
        shutil.rmtree(self.folder)


def on_redis(server: RedisServer) -> type[Interleaved]:
    """Over a Redis server, with a prefix for each history."""
    client = redis.Redis(port=server.port)

    class InterleavedOnRedis(Interleaved):
        def open(self) -> Store:
            if not hasattr(self, "store"):
                self.prefix = os.urandom(4).hex()
            return connect(server.url("redis", self.prefix))

        async def save(self) -> dict[bytes, bytes]:
            return copied(client, self.prefix)

        async def put_back(self, saved: dict[bytes, bytes]) -> None:
            put_back(client, self.prefix, saved)

        async def close(self) -> None:
            await super().close()
            await self.put_back({})

    return InterleavedOnRedis


class InterleavedOnCosmos(Interleaved):
    """Over a simulated account, of which only the catalogue is put back: an account is restored as another account."""

    refuses_late_writers = False
    erases_conditionally = False  # a container cannot be deleted on a condition

    def open(self) -> Store:
        if not hasattr(self, "store"):
            self.account = SimulatedAccount(self.loop)
            self.account.latency_s = 0.0
        return self.account.store(ru=30_000)

    async def save(self) -> None:
        """Nothing: see above."""
