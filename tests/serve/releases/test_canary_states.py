"""In whichever order releases are published, activated, tried and looked up: a user has one release in each answer."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from xxhash import xxh3_64_intdigest

from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.reader import TieredReader
from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import GRACE_S, Catalogue, ReleaseId
from hotplate.stores.encoding import OFFSET_BYTES, USER
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound
from hotplate.stores.store import Store
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.property import depth, depths
from tests.support.remote import RemoteStore, publish
from tests.support.soak import SEED

T = TypeVar("T")

USERS = 12
WHO = st.lists(st.integers(0, USERS), min_size=1, max_size=4)
WHICH = st.integers(0, 2)


def seen_by(user: int, catalogue: Catalogue) -> tuple[ReleaseId | None, bool]:
    """Return the release that a user sees by a catalogue, and whether that is the canary."""
    canary = catalogue.canary
    if canary is not None and xxh3_64_intdigest(f"{user}{canary.salt}".encode()) / 2**64 < canary.percent / 100:
        return canary.release, True
    return catalogue.live, False


class Canaries(RuleBasedStateMachine):
    """An operator, and three processes that follow the store when they come to it: with it at hand, remote, cached."""

    def __init__(self) -> None:
        super().__init__()
        drawn = count()
        self.patch = pytest.MonkeyPatch()  # histories must be repeatable
        for module in (life, publication):
            counted = SimpleNamespace(token_hex=lambda n: f"{next(drawn):0{2 * n}x}"[-2 * n :])
            self.patch.setattr(module, "secrets", counted)
        self.clock = FakeClock()
        self.loop = asyncio.new_event_loop()
        self.store = MemoryStore(self.clock)
        self.remote = RemoteStore(self.store)
        self.names = dict[ReleaseId, str]()
        self.followed = dict[int, list[Catalogue]]()
        self.may_follow = set[int]()  # which processes follow amid a lookup, because a release is gone
        self.readers = list[TieredReader]()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def attempt(self, act: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
        with suppress(ReleaseConflict, ReleaseNotFound):
            self.wait(act(self.store, *args))

    @initialize()
    def something_is_live(self) -> None:
        self.publish(live=True)
        self.readers = [
            TieredReader({"tier": store}, budget_s=30.0, cache_bytes=cache)
            for store, cache in ((self.store, 0), (self.remote, 0), (self.remote, 1 << 20))
        ]
        for which in range(len(self.readers)):
            self.a_process_follows(which)

    @rule(live=st.booleans())
    def publish(self, *, live: bool) -> None:
        name = f"r{len(self.names)}"
        self.names[self.wait(publish(self.store, name, live=live, users=range(USERS)))] = name

    @rule(data=st.data(), percent=st.sampled_from([1.0, 30.0, 60.0, 99.0]))
    def start_canary(self, data: st.DataObject, percent: float) -> None:
        self.attempt(life.start_canary, data.draw(st.sampled_from([*self.names])), percent)

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        self.attempt(life.activate, data.draw(st.sampled_from([*self.names])))

    @rule(act=st.sampled_from([life.promote, life.abort, life.rollback]))
    def change(self, act: Callable[[Store], Coroutine[Any, Any, ReleaseId]]) -> None:
        self.attempt(act)

    @rule()
    def prune_after_the_grace(self) -> None:
        self.clock.now += GRACE_S
        self.wait(life.prune(self.store, keep=0, keep_ready_s=0))
        self.may_follow = set(self.followed)

    @rule(which=WHICH)
    def a_process_follows(self, which: int) -> None:
        self.wait(self.readers[which].tiers[0].follower.refresh())
        self.followed[which] = [self.wait(self.store.catalogue())]
        self.may_follow.discard(which)

    @rule(which=WHICH, users=WHO, batched=st.booleans())
    def look_up(self, which: int, users: list[int], *, batched: bool) -> None:
        reader = self.readers[which]
        names = [str(user) for user in users]
        answers = self.wait(
            reader.personal_many(names) if batched else asyncio.wait_for(self.each(reader, names), timeout=30)
        )
        if which in self.may_follow:
            self.followed[which].append(self.wait(self.store.catalogue()))
        for user, answer in zip(users, answers, strict=True):
            may = {seen_by(user, catalogue) for catalogue in self.followed[which]}
            assert (answer.release.id, answer.release.is_canary) in may
        for user, answer in zip(users, answers, strict=True):
            name = self.names[answer.release.id]
            assert answer.body[OFFSET_BYTES:].decode() == (f"{name} for {user}" if user < USERS else name)

    async def each(self, reader: TieredReader, names: list[str]) -> list[EncodedList]:
        return await asyncio.gather(*(reader.read(USER, name) for name in names))

    def teardown(self) -> None:
        self.patch.undo()
        self.wait(self.store.close())
        self.loop.close()


@depths(10, 150)
def test_a_user_has_one_release_in_each_answer_and_the_same_in_every_process(examples: int) -> None:
    run_state_machine_as_test(seed(SEED)(Canaries), settings=depth(examples, 45))
