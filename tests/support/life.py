"""The state machine over the life of releases; a test runs it over each store: in whichever order, the rules hold."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from stores import catalogue as changes
from stores import lifecycle as life
from stores.catalogue import GRACE_S, LEASE_S, Canary, Catalogue, ReleaseId, State, follows
from stores.compression import Encoder
from stores.encoding import Checksum
from stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreError
from stores.manifest import Tally, describe
from stores.memory import MemoryStore
from stores.store import Plan, Row, Store
from stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.stores import as_bodies, batches, draft_of

T = TypeVar("T")

ROWS = [Row("popular:", b'{"id":"p","score":1}'), Row("user:1", b'{"id":"a","score":2}'), Row("user:2", b"")]


def stored(release: ReleaseId, rows: list[Row]) -> list[Row]:
    """Return rows as a publish of *release* stores them."""
    return Encoder(Checksum(release), None).rows(as_bodies(rows))


class Life(RuleBasedStateMachine):
    """Two publishers, an operator, a reader and time, over one store."""

    drafts = Bundle("drafts")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.loop = asyncio.new_event_loop()
        self.store = self.open()
        self.seen: Catalogue | None = None
        self.generation = 0
        self.left_live_at = dict[ReleaseId, float]()
        self.was_live: ReleaseId | None = None
        self.stale: Catalogue | None = None

    def open(self) -> Store:
        return MemoryStore(self.clock)

    def teardown(self) -> None:
        self.wait(self.store.close())
        self.loop.close()

    def wait(self, what: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(what)

    def catalogue(self) -> Catalogue:
        return self.wait(self.store.catalogue())

    def swap(self, change: Callable[[Catalogue], Catalogue]) -> None:
        old = self.catalogue()
        new = changes.succeed(old, change(old), secrets.token_hex(4), "store")
        self.wait(self.store.swap(old, new))

    # publishers

    @initialize()
    def first_release(self) -> None:
        self.publish_whole(live=True, end_canary=False)

    @rule(target=drafts)
    def begin_and_crash_or_pause(self) -> ReleaseId:
        release = ReleaseId(f"r-{secrets.token_hex(4)}")
        self.swap(lambda found: changes.begin(found, draft_of(release)))
        self.wait(self.store.create(draft_of(release), Plan(3, 100)))
        return release

    @rule(draft=drafts, rows=st.lists(st.sampled_from(ROWS), max_size=3))
    def write_some(self, draft: ReleaseId, rows: list[Row]) -> None:
        try:
            self.wait(self.store.put(draft_of(draft), stored(draft, rows)))
        except StoreError as error:
            assert isinstance(error, ReleaseNotFound)  # noqa: PT017 -- a put may succeed, or fail in this one way
            assert not self.is_draft(draft)

    @rule(draft=drafts)
    def renew(self, draft: ReleaseId) -> None:
        if self.is_draft(draft):
            self.swap(lambda found: changes.renew(found, draft_of(draft)))
        else:
            with pytest.raises((ReleaseNotFound, ReleaseConflict)):
                changes.renew(self.catalogue(), draft_of(draft))

    @rule(draft=consumes(drafts))
    def finish(self, draft: ReleaseId) -> None:
        """A paused publisher goes on to its end; if its draft was dropped meanwhile, it must not commit."""
        was_draft = self.is_draft(draft)
        try:
            self.wait(self.write_all(draft))
            self.swap(lambda found: changes.commit(found, draft_of(draft)))
        except (ReleaseNotFound, ReleaseConflict):
            assert not was_draft
        else:
            assert was_draft

    async def write_all(self, draft: ReleaseId) -> None:
        tally, rows = Tally(), stored(draft, ROWS)
        tally.add(rows)
        await self.store.put(draft_of(draft), rows)
        manifest = describe(draft, tally, created_at=self.clock.now, encoding="json", about={})
        await self.store.put(draft_of(draft), [manifest.key_row])
        await self.store.seal(draft_of(draft))

    @rule(live=st.booleans(), end_canary=st.booleans())
    def publish_whole(self, *, live: bool, end_canary: bool) -> None:
        canary = self.catalogue().canary
        publishing = life.publish(
            self.store, batches(ROWS), plan=Plan(3, 100), about={}, live=live, end_canary=end_canary
        )
        release = self.wait(publishing).manifest.release
        is_live = live and (canary is None or end_canary)
        assert self.state(release) == (State.LIVE if is_live else State.READY)
        assert self.catalogue().canary == (None if is_live else canary)

    @rule()
    def publish_and_fail(self) -> None:
        before = self.catalogue()
        with pytest.raises(ReleaseCorrupt):
            self.wait(life.publish(self.store, batches(ROWS[1:]), plan=Plan(3, 100), about={}))
        after = self.catalogue()
        assert after.live == before.live
        assert [entry.id for entry in after.releases] == [
            entry.id for entry in changes.begin(before, draft_of(ReleaseId("new"))).releases[:-1]
        ]

    # operators and time

    @rule(data=st.data(), end_canary=st.booleans())
    def activate_any(self, data: st.DataObject, *, end_canary: bool) -> None:
        entry = data.draw(st.sampled_from(self.catalogue().releases))
        canary = self.catalogue().canary
        held = canary is not None and not end_canary and entry.id not in (canary.release, self.catalogue().live)
        if held or entry.state in (State.DRAFT, State.DROPPING):
            with pytest.raises((ReleaseConflict, ReleaseNotFound)):
                self.wait(life.activate(self.store, entry.id, end_canary=end_canary))
        else:
            self.wait(life.activate(self.store, entry.id, end_canary=end_canary))
            after = self.catalogue()
            assert (after.live, after.canary) == (entry.id, canary if entry.state is State.LIVE else None)

    @rule(data=st.data(), percent=st.sampled_from([1.0, 50.0, 99.5]))
    def show_any_to_some_users(self, data: st.DataObject, percent: float) -> None:
        before = self.catalogue()
        entry = data.draw(st.sampled_from(before.releases))
        others = before.canary is not None and before.canary.release != entry.id
        if others or entry.state in (State.DRAFT, State.DROPPING, State.LIVE):
            with pytest.raises((ReleaseConflict, ReleaseNotFound)):
                self.wait(life.start_canary(self.store, entry.id, percent))
        else:
            self.wait(life.start_canary(self.store, entry.id, percent))
            assert self.catalogue().canary == Canary(entry.id, percent, salt=entry.id)

    @rule(end=st.sampled_from([life.promote, life.abort]))
    def end_the_canary(self, end: Callable[[Store], Coroutine[Any, Any, ReleaseId]]) -> None:
        before = self.catalogue()
        if before.canary is None:
            with pytest.raises(ReleaseNotFound):
                self.wait(end(self.store))
            return
        release = self.wait(end(self.store))
        assert release == before.canary.release
        assert self.catalogue().canary is None
        assert self.catalogue().live == (release if end is life.promote else before.live)

    @rule()
    def roll_back(self) -> None:
        before = self.catalogue()
        left = before.live
        try:
            target = self.wait(life.rollback(self.store))
        except ReleaseNotFound:
            assert State.SUPERSEDED not in {entry.state for entry in before.releases}
        else:
            states = {entry.id: entry.state for entry in before.releases}
            assert target == [past for past in self.left_live_at if states.get(past) is State.SUPERSEDED][-1]
            assert left is not None
            assert self.state(left) is State.WITHDRAWN

    @rule(keep=st.integers(0, 2))
    def prune(self, keep: int) -> None:
        before = self.catalogue()
        dropped = self.wait(life.prune(self.store, keep=keep))
        for release in dropped:
            entry = next(entry for entry in before.releases if entry.id == release)
            left = self.left_live_at.get(release)
            assert left is None or left + GRACE_S <= self.clock.now
            assert entry.ref not in before.served
            assert entry.state is not State.DRAFT or (entry.lease_until or 0) <= self.clock.now
            with pytest.raises(ReleaseNotFound):
                self.wait(self.store.get_many(entry.ref, ["user:1"]))
        kept = [entry for entry in before.releases if entry.state is State.SUPERSEDED][-keep:] if keep else []
        assert not {entry.id for entry in kept} & set(dropped)

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S, GRACE_S, 2 * GRACE_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def a_slow_rival_reads(self) -> None:
        self.stale = self.catalogue()

    @precondition(lambda self: self.stale is not None)
    @rule()
    def a_slow_rival_swaps(self) -> None:
        stale = self.stale
        assert stale is not None
        if stale.version != self.catalogue().version:
            with pytest.raises(ReleaseConflict):
                self.wait(self.store.swap(stale, changes.succeed(stale, stale, "rival", "store")))

    # what always holds

    @invariant()
    def the_live_release_and_the_canary_are_whole(self) -> None:
        found = self.catalogue()
        assert len(found.served) == (found.live is not None) + (found.canary is not None)
        for release in found.served:
            manifest = self.wait(verify(self.store, release))
            assert manifest.counts == {"popular": 1, "user": 2}

    @invariant()
    def once_live_something_stays_live_and_generations_rise(self) -> None:
        found = self.catalogue()
        assert found.generation >= self.generation
        assert sum(entry.state is State.LIVE for entry in found.releases) == (found.generation > 0)
        self.generation = found.generation

    @invariant()
    def a_reader_follows_every_change_and_nothing_older(self) -> None:
        found = self.catalogue()
        if self.seen is not None:
            assert follows(found, self.seen) == (found.version != self.seen.version)
            assert found.version == self.seen.version or not follows(self.seen, found)
        self.seen = found if found.generation else None

    @invariant()
    def notes_when_a_release_left_service(self) -> None:
        live = self.catalogue().live
        if live != self.was_live and self.was_live is not None:
            self.left_live_at[self.was_live] = self.clock.now
        if live is not None:
            self.left_live_at.pop(live, None)
        self.was_live = live

    def is_draft(self, release: ReleaseId) -> bool:
        return self.state(release) is State.DRAFT

    def state(self, release: ReleaseId) -> State | None:
        return next((entry.state for entry in self.catalogue().releases if entry.id == release), None)
