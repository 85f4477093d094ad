"""What a worker of the service answers while servers are replaced, and a publish that goes on meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress

from hotplate.serve.reader import EncodedList, TieredReader
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.lifecycle import publish
from hotplate.stores.store import Plan, Row
from hotplate.stores.verification import verify
from tests.support.readers import USERS, WAIT_S, lists, reading, until
from tests.support.stores import as_bodies, ref_of

# How many lists a second are read.
RATE = 200
# A publish that takes about three seconds, so that what happens meanwhile happens in its midst.
BATCHES, BATCH, PAUSE_S = 60, 100, 0.05


class Watch:
    """Reads list after list, each of which must be its user's own or popular, and notes when which came.

    Users come in turn, so that the answers' places say whose they are.
    """

    def __init__(self, reader: TieredReader) -> None:
        self.reader = reader
        self.answers = list[tuple[float, EncodedList]]()

    async def run(self) -> None:
        while True:
            for user in range(USERS):
                answer = await self.reader.personal(str(user))
                assert answer.source == "popular" or f'-{user}"'.encode() in answer.body, "somebody else's list"
                self.answers.append((time.monotonic(), answer))
                await asyncio.sleep(1 / RATE)

    def popular(self, since: float | None = None) -> str:
        """Return how many popular lists there were, when after *since* or the first list, and for how long."""
        since = since or self.answers[0][0]
        stretches = list[list[float]]()
        ended = False
        for at, answer in self.answers:
            if answer.source != "popular":
                ended = True
            elif ended or not stretches:
                stretches.append([at])
                ended = False
            else:
                stretches[-1].append(at)
        said = (f"{len(times)} at {times[0] - since:+.2f} s for {times[-1] - times[0]:.2f} s" for times in stretches)
        return ", ".join(said) or "none"

    @property
    def misses(self) -> int:
        """How many lists were said not to exist, of users who all have one."""
        return sum(answer.status == "unknown" for _, answer in self.answers)

    async def until_personal(self, release: str | None = None) -> None:
        """Wait until as many answers in a row as there are users are their own, out of *release* where given."""

        async def is_so() -> bool:
            last = [answer for _, answer in self.answers[-USERS:]]
            releases = {answer.served.id for answer in last}
            return {answer.source for answer in last} == {"personal"} and releases == {release or last[-1].served.id}

        await until(is_so, f"no personal lists of {release or 'a release'}")

    async def until_popular(self, users: Collection[int]) -> None:
        """Wait until each of *users*, and nobody else, gets the popular list."""

        async def is_so() -> bool:
            places = range(max(0, len(self.answers) - USERS), len(self.answers))
            return {place % USERS for place in places if self.answers[place][1].source == "popular"} == set(users)

        await until(is_so, "others than these get popular lists")


@asynccontextmanager
async def watched(url: str, budget_s: float = 0.05) -> AsyncIterator[Watch]:
    """Read what *url* has as a worker does, all the time until the block ends."""
    async with reading(url, budget_s=budget_s) as reader:
        watch = Watch(reader)
        watching = asyncio.create_task(watch.run())
        try:
            await watch.until_personal()
            yield watch
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


class Publisher:
    """Publishes a release in small batches, as often as it takes, each time going on where it can."""

    def __init__(self, url: str, mark: str) -> None:
        self.interruptions = list[str]()
        self.put = 0
        self._store = connect(url)
        of = lists(mark)
        rows = [Row(key, of[key]) for key in of] + [
            Row(f"user:more-{n:06}", of["user:1"]) for n in range(BATCHES * BATCH)
        ]
        self._rows = as_bodies(sorted(rows, key=lambda row: row.key.encode()))

    async def batches(self) -> AsyncIterator[list[Row]]:
        for start in range(0, len(self._rows), BATCH):
            yield self._rows[start : start + BATCH]
            self.put = start
            await asyncio.sleep(0 if self.interruptions else PAUSE_S)

    async def publish(self) -> ReleaseId:
        """Return the release, once it is live and has been read back whole."""
        try:
            async with asyncio.timeout(3 * WAIT_S):
                release = await self._publish()
                while True:
                    with suppress(StoreUnavailable):  # a primary may be replaced once more
                        await verify(self._store, await ref_of(self._store, release))
                        break
        finally:
            await self._store.close()
        return release

    async def _publish(self) -> ReleaseId:
        plan, resume = Plan(len(self._rows), 1_000_000), None
        while True:
            try:
                done = await publish(self._store, self.batches(), plan=plan, about={}, resume=resume)
            except StoreUnavailable as error:
                self.interruptions.append(str(error))
                resume = await self._draft()
            else:
                return ReleaseId(done.manifest.release)

    async def _draft(self) -> ReleaseId | None:
        while True:
            try:
                found = await self._store.catalogue()
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                return next((entry.id for entry in found.releases if entry.state == "draft"), None)

    async def until_half(self) -> None:
        async def is_so() -> bool:
            return self.put > len(self._rows) / 2

        await until(is_so, "the publish does not go on")
