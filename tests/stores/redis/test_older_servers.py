"""Servers that return with older snapshots at any moment of a publish, an erasure or a prune.

Whatever is lost with them, no list is wrong, the service answers, and a new release restores it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

import hotplate
from hotplate.base.recommendations import Item
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId, State
from hotplate.stores.connect import connect
from hotplate.stores.doctor import examine
from hotplate.stores.encoding import OFFSET_BYTES, USER, Checksum, encode
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import CatalogueUnreadable, ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.publication import LIVE, publish_release
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.redis.sentinels import Sentinels
from hotplate.stores.store import Level, Plan, Row, Store
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.older_servers import AgeingDeployment, ageing
from tests.support.soak import SEED, scaled

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

# In 40 minutes, 200 on each deployment; those of a cluster and of sentinels take 2 to 5 s each.
VERBS = scaled(50, least=20)

# How long to wait for the replicas of a new primary, before other tests make it longer.
SETTLE_S = Sentinels.settle_s

USERS = 200
VERB_TIMEOUT_S = 180.0

# A service follows an older generation after 30 s.
FOLLOWED_WITHIN_S = 120.0

# Verbs between two prunes after which nothing may be left over.
ROUND = 10

# A verb is interrupted within this many seconds, mostly before its end.
STRUCK_WITHIN_S = 0.2


def bodies(label: str) -> list[Row]:
    """Return lists that name the publish and their key."""
    keys = ["popular:", *(f"{USER}{number}" for number in range(USERS))]
    return [Row(key, encode([Item(id=f"{label} {key}", score=1.0)])) for key in keys]


class Harness:
    """Runs verbs on a deployment, interrupts it, and compares all lists with the published ones."""

    def __init__(self, deployment: AgeingDeployment, draws: random.Random) -> None:
        self.deployment = deployment
        self.counts = Counter[str]()
        self.labels = dict[ReleaseId, str]()
        """Which publish a release is of, as its first list said."""
        self._draws = draws
        self._hidden = set[str]()
        """Users whom the running service has treated as erased."""

    async def publish(self, store: Store, *, live: bool = True) -> ReleaseId:
        self.counts["published"] += 1
        label = f"p{self.counts['published']}"
        rows = bodies(label)

        async def batches() -> AsyncIterator[Sequence[Row]]:
            for start in range(0, len(rows), 50):
                yield rows[start : start + 50]

        done = await publish_release(store, batches(), plan=Plan(len(rows), 20_000), activation=LIVE if live else None)
        self.labels[done.manifest.release] = label
        return done.manifest.release

    async def publish_ready(self, store: Store) -> None:
        await life.activate(store, await self.publish(store, live=False))

    async def prune(self, store: Store) -> None:
        await life.prune(store, keep=self._draws.choice([0, 1]), grace_s=0)

    async def roll_back(self, store: Store) -> None:
        await life.rollback(store)

    async def erase(self, store: Store) -> None:
        await erase_users(store, [str(self._draws.randrange(USERS)) for _ in range(2)])

    @property
    def verbs(self) -> list[Callable[[Store], Coroutine[None, None, object]]]:
        """The choices of a draw; some are repeated for more weight."""
        return [self.publish, self.publish, self.publish_ready, self.prune, self.prune, self.erase, self.roll_back]

    async def run(self, verbs: int) -> None:
        """Run this many verbs, and interrupt half of them."""
        async with opened(self.deployment.url) as store:
            await self.publish(store)
        await asyncio.to_thread(self.deployment.save, self._draws)
        async with hotplate.open(self.deployment.url, budget_s=5.0, timeout_s=30.0) as service:
            for number in range(1, verbs + 1):
                await self.run_one(self._draws.choice(self.verbs), is_struck=self._draws.random() < 0.5)
                await self.check()
                await self.check_service(service)
                if number % ROUND == 0:
                    await self.check_round(service)
                if self._draws.random() < 0.4:
                    await asyncio.to_thread(self.deployment.save, self._draws)

    async def run_one(self, verb: Callable[[Store], Coroutine[None, None, object]], *, is_struck: bool) -> None:
        self.counts["verbs"] += 1
        self.counts["struck"] += is_struck
        async with opened(self.deployment.url) as store:
            working = asyncio.create_task(asyncio.wait_for(verb(store), VERB_TIMEOUT_S))
            if is_struck:
                await asyncio.sleep(self._draws.uniform(0, STRUCK_WITHIN_S))
                await asyncio.to_thread(self.deployment.strike, self._draws)
            try:
                await working
            except StoreError as error:
                self.counts[f"refused: {type(error).__name__}"] += 1

    async def check(self) -> None:
        """Read all lists that are live; if they are damaged, the doctor says so, and a new release is whole."""
        async with opened(self.deployment.url) as store:
            try:
                await self.check_live(store)
            except (CatalogueUnreadable, ReleaseCorrupt, ReleaseNotFound) as error:
                self.counts[f"damaged: {type(error).__name__}"] += 1
                await self.mend(store, str(error))
                await self.check_live(store)

    async def mend(self, store: Store, damage: str) -> None:
        """Do what the doctor advises, or what `verify` does if rows are missing that the doctor's sample lacks."""
        findings = [finding for finding in await examine(store) if finding.subject in ("catalogue", "live", "rows")]
        said = " ".join(finding.sentence for finding in findings if finding.level is not Level.OK)
        if not said:
            assert damage.startswith("of release "), f"the doctor finds nothing, but: {damage}"
            self.counts["found by verify alone"] += 1
            said = damage
        if "`hotplate store rebuild`" in said:
            self.counts["rebuilt"] += 1
            await self.rebuild(store)
        else:
            assert "publish" in said, said
        await self.publish(store)

    async def rebuild(self, store: Store) -> None:
        try:
            surveyed = await survey(store)
        except ReleaseNotFound:
            return  # nothing is whole: the next publish begins
        await rebuild(store, surveyed, list(surveyed.candidates)[-1], force=True)

    async def check_live(self, store: Store) -> None:
        catalogue = await store.catalogue()
        if not catalogue.generation:
            await life.check_nothing_to_rebuild(store)
        if catalogue.live_ref is None:
            raise ReleaseNotFound("nothing is live")
        await verify(store, catalogue.live_ref)
        erased = await erased_from(store)
        users = set[str]()
        release = catalogue.live_ref.id
        opened_with = Checksum(release).open
        async for key, value in store.scan(catalogue.live_ref):
            if key.startswith("meta:"):
                continue
            label, _, of = str(orjson.loads(opened_with(key, value)[OFFSET_BYTES:])["id"]).partition(" ")
            assert of == key, f"{release} has the list of {of} under {key}"
            assert self.labels.setdefault(release, label) == label, f"{release} is of {label}, too"
            users.add(key)
            self.counts["lists"] += 1
        missing = {row.key for row in bodies("")} - users
        assert all(erased.covers(key) for key in missing), f"{release} lacks {sorted(missing)[:5]}"

    async def check_service(self, service: hotplate.Lists) -> None:
        """Every user gets their own list or the popular one, and erased users never their own."""
        answers = await service.personal_many([str(user) for user in range(USERS)], 1)
        for user, answer in enumerate(answers):
            key = "popular:" if answer.source == "popular" else f"{USER}{user}"
            assert answer.items[0]["id"].endswith(f" {key}"), f"user {user} got {answer}"
            assert answer.source == "popular" or str(user) not in self._hidden, f"{user} is shown again"
            self.counts["answers"] += 1

    async def check_round(self, service: hotplate.Lists) -> None:
        """Prune, find nothing left over, publish, and wait until it is served."""
        async with opened(self.deployment.url) as store:
            await life.prune(store, keep=0, grace_s=0)
            catalogue = await store.catalogue()
            drafts = [entry for entry in catalogue.releases if entry.state is State.DRAFT]
            left_over = {finding.subject: finding for finding in await examine(store)}["left over"]
            assert drafts or left_over.level is Level.OK, left_over.sentence
            named = ("}:catalogue", "}:incarnations", "}:erased", "}:log")
            orphans = [
                key
                for key in await asyncio.to_thread(self.deployment.keys)
                if not any(f"{{{entry.incarnation}." in key for entry in catalogue.releases)
                and not any(name in key for name in named)
            ]
            assert orphans == []
            release = await self.publish(store)
            await self.check_live(store)
            erased = await erased_from(store)

        async with asyncio.timeout(FOLLOWED_WITHIN_S):
            while (await service.personal("1")).release != release:
                await asyncio.sleep(0.05)
        self._hidden |= {str(user) for user in range(USERS) if erased.covers(f"{USER}{user}")}
        await self.check_service(service)
        self.counts["rounds"] += 1


@pytest.fixture(autouse=True)
def settles_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore SETTLE_S: after most faults, a new primary has no replicas.

    The other limits stay long: a server that was killed refuses at once, and a late one must not count as a fault.
    """
    monkeypatch.setattr(Sentinels, "settle_s", SETTLE_S)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = connect(url)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("kind", ["server", "cluster", "sentinel"])
async def test_no_wrong_list_and_a_new_release_restores_service(
    kind: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with ageing(kind, tmp_path) as deployment:
        harness = Harness(deployment, random.Random(SEED))
        try:
            await harness.run(VERBS)
        finally:
            for name, count in sorted(harness.counts.items()):
                record_property(name, count)
