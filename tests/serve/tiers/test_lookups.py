"""The walk over tiers answers as a model does that reads one row after the other, however rows are requested."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.tier import Tier
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import USER, RowKey
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.store import Reader
from hotplate.stores.users import erase_users
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.property import explored
from tests.support.remote import RemoteStore, publish
from tests.support.virtual import in_virtual_time

USERS = 6
# Of an answer: its tier, release, source and status.
Brief = tuple[str, ReleaseId, str, str]


class PointRemote(RemoteStore):
    """A store over a network that reads key by key."""

    batch = 64
    coalesce = 1


class BatchRemote(RemoteStore):
    """A store over a network that reads all keys at once."""

    batch = coalesce = 64


@dataclass(frozen=True)
class Published:
    """What is in a store: ranges of the users that have lists."""

    live: range
    canary: range | None
    erased: frozenset[int]


@dataclass(frozen=True)
class TierCase:
    """How one tier reads which store."""

    source: int
    kind: type[RemoteStore] | None
    """None for a store in this process, which does not fail."""

    fails: bool
    broken: frozenset[int]
    broken_by: StoreError


class Case(NamedTuple):
    sources: Sequence[Published]
    tiers: Sequence[TierCase]
    denied: frozenset[int]
    cache_bytes: int


USER_SETS = st.frozensets(st.integers(0, USERS - 1), max_size=2)
RANGES = st.tuples(st.integers(0, USERS), st.integers(0, USERS)).map(lambda ends: range(min(ends), max(ends)))
SOURCES = st.lists(st.builds(Published, RANGES, st.none() | RANGES, USER_SETS), min_size=2, max_size=2)
TIERS = st.lists(
    st.builds(
        TierCase,
        source=st.integers(0, 1),
        kind=st.sampled_from([None, PointRemote, BatchRemote]),
        fails=st.booleans(),
        broken=USER_SETS,
        broken_by=st.sampled_from([StoreUnavailable("no answer for this one"), ReleaseCorrupt("damaged")]),
    ),
    min_size=1,
    max_size=3,
)
CASES = st.builds(Case, SOURCES, TIERS, USER_SETS, st.sampled_from([0, 1 << 20]))


class Model:
    """The answers by the rules of docs/serving.md, "Tiers", for one row after the other."""

    def __init__(self, case: Case, tiers: Sequence[Tier], lists: Mapping[ReleaseId, range]) -> None:
        self.case = case
        self.tiers = tiers
        self.lists = lists
        self.hidden = case.denied.union(*(case.sources[tier.source].erased for tier in case.tiers))

    def release_of(self, tier: int, user: int) -> ReleaseId:
        release = self.tiers[tier].follower.release_for(RowKey(USER, str(user)))
        assert release is not None
        return release.id

    def outcome(self, tier: int, release: ReleaseId, user: int) -> str:
        """Return what reading a user's list in one tier comes to."""
        rules = self.case.tiers[tier]
        if rules.kind is not None and (rules.fails or user in rules.broken):
            return "error"
        is_listed = user in self.lists[release] and user not in self.case.sources[rules.source].erased
        return "ok" if is_listed else "unknown"

    def single(self, user: int) -> Brief:
        """Return the answer of the first tier with a list, or else the first that lacks it, or else the first."""
        if user in self.hidden:
            return self._brief(0, self.release_of(0, user), "unknown")
        missed = list[tuple[int, ReleaseId]]()
        for tier in range(len(self.tiers)):
            release = self.release_of(tier, user)
            if any(other == release for _, other in missed):
                continue
            outcome = self.outcome(tier, release, user)
            if outcome == "ok":
                return self._brief(tier, release, "ok")
            if outcome == "unknown":
                missed.append((tier, release))
        if missed:
            return self._brief(*missed[0], "unknown")
        return self._brief(0, self.release_of(0, user), "error")

    def batch(self, users: Sequence[int]) -> list[Brief]:
        """Return the answers of the first tier that can be read, of one release or its canary."""
        readable = [tier for tier, rules in enumerate(self.case.tiers) if rules.kind is None or not rules.fails]
        briefs = list[Brief]()
        for user in users:
            if user in self.hidden:
                tier = readable[0] if readable else 0
                briefs.append(self._brief(tier, self.release_of(tier, user), "unknown"))
            elif readable:
                release = self.release_of(readable[0], user)
                briefs.append(self._brief(readable[0], release, self.outcome(readable[0], release, user)))
            else:
                briefs.append(self._brief(0, self.release_of(0, user), "error"))
        return briefs

    def in_release(self, release: ReleaseId, user: int) -> Brief | None:
        """Return the answer of the first tier with the release that can read the row, or None."""
        tiers = [number for number, tier in enumerate(self.tiers) if tier.follower.find(release) is not None]
        for tier in tiers:
            outcome = self.outcome(tier, release, user)
            if outcome != "error":
                return self._brief(tier, release, "unknown" if user in self.hidden else outcome)
        return None

    def _brief(self, tier: int, release: ReleaseId, outcome: str) -> Brief:
        source = "personal" if outcome == "ok" else "popular"
        return self.tiers[tier].name, release, source, outcome


def brief(answer: EncodedList) -> Brief:
    return answer.tier, answer.release.id, answer.source, answer.status


async def published(content: Published, name: str) -> tuple[MemoryStore, dict[ReleaseId, range]]:
    """Return a store with *content*, and the users of each release."""
    clock = FakeClock()
    clock.now += int(name)  # or releases of two stores could draw the same id
    store = MemoryStore(clock)
    lists = {await publish(store, f"{name} live", users=content.live): content.live}
    if content.canary is not None:
        canary = await publish(store, f"{name} canary", live=False, users=content.canary)
        lists[canary] = content.canary
        await life.start_canary(store, canary, 50.0)
    if content.erased:
        await erase_users(store, [str(user) for user in content.erased])
    return store, lists


def opened(tier: TierCase, stores: Sequence[MemoryStore]) -> Reader:
    if tier.kind is None:
        return stores[tier.source]
    return tier.kind(stores[tier.source])


def damage(store: RemoteStore, tier: TierCase) -> None:
    """Let reads fail from now on."""
    store.broken_keys = {f"{USER}{user}" for user in tier.broken}
    store.broken_by = tier.broken_by
    if tier.fails:
        store.failure = StoreUnavailable("gone")


async def compare(case: Case, denied: Path) -> None:
    stores = list[MemoryStore]()
    lists = dict[ReleaseId, range]()
    for number, content in enumerate(case.sources):
        store, users_by_release = await published(content, str(number))
        stores.append(store)
        lists |= users_by_release

    readers = {f"tier{number}": opened(tier, stores) for number, tier in enumerate(case.tiers)}
    denied.write_text("".join(f"user:{user}\n" for user in case.denied))
    reader = TieredReader(readers, deny_list=DenyListFile(denied), cache_bytes=case.cache_bytes)
    for tier, rules in zip(reader.tiers, case.tiers, strict=True):
        await tier.follower.refresh()
        if isinstance(tier.reader, RemoteStore):
            damage(tier.reader, rules)
    model = Model(case, reader.tiers, lists)

    users = range(USERS)
    names = [str(user) for user in users]
    for _ in range(2):  # from the stores, then from caches, where there are some
        singles = await asyncio.gather(*(reader.read(USER, name) for name in names))
        assert [brief(answer) for answer in singles] == [model.single(user) for user in users]
        assert [brief(answer) for answer in await reader.personal_many(names)] == model.batch(users)
        for release in lists:
            pages = await reader.in_release(release, [RowKey(USER, name) for name in names])
            answers = [None if answer is None else brief(answer) for answer in pages]
            assert answers == [model.in_release(release, user) for user in users]
    await reader.lookups.close()


@pytest.fixture(scope="module")
def denied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("denied") / "denied"


@explored(12, 2_000, case=CASES)
def test_answers_over_tiers_are_those_of_the_model(case: Case, denied: Path) -> None:
    in_virtual_time(lambda _: compare(case, denied))
