"""Where to read and where to write: regions learnt from the account, left while they are sick, and taken up again."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from stores.cosmos.answers import Malformed, object_of
from stores.cosmos.driver import DEADLINE_S, Account
from stores.cosmos.errors import PASSING, CosmosUnavailable, Kind
from stores.cosmos.places import STRIKES, Places, places_of
from stores.cosmos.rest.endpoint import Endpoint, Judge
from stores.errors import StoreError

log = logging.getLogger(__name__)

LEARN_S = 300.0
"""How often the account is asked again; the SDKs do the same."""

HURRY_S = 5.0
"""How soon after the last time it is asked again when something is wrong."""

PAUSE_S = (1.0, 60.0)
"""The first and the longest pause before a region that was left is looked at again."""


@dataclass(slots=True, eq=False)
class Region:
    """One region that can be read; lives as long as the account lists it."""

    name: str
    endpoint: Endpoint
    strikes: int = 0
    """Failures since the last answer."""

    lost: bool = False
    pause_s: float = PAUSE_S[0]
    found_at: float = field(default=float("-inf"))
    """When it was last taken up again, by the event loop's clock."""

    again_at: float = 0.0
    """Before then a read that it answers says too little: some do get through to a sick region."""


class Regions:
    """Lives as long as its driver; asks nothing before `known`."""

    def __init__(
        self, account: Endpoint, preferred: str | None, reach: Callable[[str], Endpoint], judge: Judge
    ) -> None:
        """Take the account's own endpoint, the region to be read first, and how an endpoint is reached by its URL."""
        self._account = account
        self._preferred = preferred
        self._reach = reach
        self._judge = judge
        self._endpoints = {account.url: account}
        self._readable = list[Region]()
        self._learning: asyncio.Task[Places] | None = None
        self._tasks = set[asyncio.Task[None]]()
        self._timer: asyncio.TimerHandle | None = None
        self._learnt_at = float("-inf")
        self.near: Region | None = None
        """Where lookups go; None until the account was asked."""

        self.written = account
        """Where writes go, and reads that must see them."""

        self.session = False
        """Whether the account is consistent enough for sessions."""

    async def known(self, timeout_s: float) -> Region:
        """Return where lookups go, once the account has said so; raises StoreError."""
        if self.near is None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.learn()
            except TimeoutError:
                raise CosmosUnavailable(
                    f"{self._judge.shown} did not say in time where it is read", "timeout"
                ) from None
        if self.near is None:
            raise CosmosUnavailable(f"{self._judge.shown} named no region that can be read", "malformed")
        return self.near

    async def learn(self) -> Account:
        """Ask the account anew; callers at the same time share the answer. Raises StoreError."""
        if self._learning is None:
            self._learning = asyncio.create_task(self._learn())
            self._learning.add_done_callback(self._learned)
        places = await asyncio.shield(self._learning)
        return Account(places.many_writers, tuple(region.name for region in self._readable))

    def answered(self, region: Region) -> None:
        """Take note that a region answers; one that was left must do so after its pause to be taken up again."""
        region.strikes = 0
        if region.lost and asyncio.get_running_loop().time() >= region.again_at:
            self._take_up(region)

    def instead(self, region: Region, kind: Kind) -> Region | None:
        """Take note that a read failed in *region*; return another to ask, where another may do better."""
        if kind not in PASSING:
            return None
        region.strikes += 1
        others = [one for one in self._readable if one is not region]
        healthy = next((one for one in others if not one.lost), None)
        if healthy is not None and not region.lost and (region.strikes >= STRIKES or kind == "connect"):
            self._leave(region, kind)
        return healthy or next(iter(others), None)

    def doubt(self) -> None:
        """Ask the account again soon: something is not where it said."""
        if self._learning is None and asyncio.get_running_loop().time() - self._learnt_at >= HURRY_S:
            self._start(self._relearn())

    async def close(self) -> None:
        """Stop asking, and close the ways to all endpoints."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._tasks, *([self._learning] if self._learning is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._endpoints.values():
            await endpoint.transport.close()

    def _leave(self, region: Region, kind: Kind) -> None:
        """Read elsewhere for a while; longer each time for a region that does not stay."""
        steady = asyncio.get_running_loop().time() - region.found_at > PAUSE_S[1]
        region.pause_s = PAUSE_S[0] if steady else min(region.pause_s * 2, PAUSE_S[1])
        region.lost = True
        region.again_at = asyncio.get_running_loop().time() + region.pause_s
        self.near = next(one for one in self._readable if not one.lost)
        log.warning("%s: %s cannot be read (%s); reading from %s", self._judge.shown, region.name, kind, self.near.name)
        self._start(self._look_after(region))
        self.doubt()

    async def _look_after(self, region: Region) -> None:
        """Look at a region that was left now and then, until it answers or the account lists it no more."""
        while region.lost and region in self._readable:
            await asyncio.sleep(region.pause_s * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads workers, guards nothing
            region.pause_s = min(region.pause_s * 2, PAUSE_S[1])
            try:
                answer = await region.endpoint.ask("GET", "", "", "")
            except StoreError:
                continue
            if answer.status == 200:
                self._take_up(region)

    def _take_up(self, region: Region) -> None:
        if region.lost and region in self._readable:
            region.lost, region.strikes = False, 0
            region.found_at = asyncio.get_running_loop().time()
            self.near = next(one for one in self._readable if not one.lost)
            log.warning("%s: %s can be read again; reading from %s", self._judge.shown, region.name, self.near.name)

    async def _learn(self) -> Places:
        """Ask the account's own endpoint, and where that does not answer those of its regions."""
        failed: StoreError | None = None
        for endpoint in list(dict.fromkeys([self._account, *(region.endpoint for region in self._readable)])):
            try:
                answer = await endpoint.ask("GET", "", "", "", timeout_s=DEADLINE_S)
                if answer.status != 200:
                    raise self._judge.refused(answer)
                places = places_of(object_of(answer), self._account.url)
            except Malformed as error:
                failed = failed or self._judge.nonsense(error)
            except StoreError as error:
                failed = failed or error
            else:
                await self._adopt(places)
                return places
        raise failed or CosmosUnavailable(f"{self._judge.shown} cannot be reached", "connect")

    async def _adopt(self, places: Places) -> None:
        """Go by what the account says; regions that stay keep what is known of their health."""
        known = {(region.name, region.endpoint.url): region for region in self._readable}
        wanted = dict.fromkeys([(place.name, place.url) for place in places.readable])
        ordered = sorted(wanted, key=lambda place: place[0] != self._preferred)
        before = [region.name for region in self._readable]
        self._readable = [known.get(place) or Region(place[0], self._endpoint(place[1])) for place in ordered]
        self.near = next((one for one in self._readable if not one.lost), self._readable[0])
        self.written = self._endpoint(places.written.url)
        self.session = places.session
        names = [region.name for region in self._readable]
        if before and before != names:
            log.warning("%s: its regions are now %s", self._judge.shown, ", ".join(names))
        await self._drop({self._account.url, places.written.url, *(url for _, url in wanted)})

    async def _drop(self, needed: set[str]) -> None:
        for url in set(self._endpoints) - needed:
            await self._endpoints.pop(url).transport.close()

    def _endpoint(self, url: str) -> Endpoint:
        found = self._endpoints.get(url)
        if found is None:
            found = self._endpoints[url] = self._reach(url)
        return found

    def _learned(self, learning: asyncio.Task[Places]) -> None:
        self._learning = None
        if learning.cancelled():
            return
        learning.exception()  # seen, even where every caller has gone
        loop = asyncio.get_running_loop()
        self._learnt_at = loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(LEARN_S * random.uniform(0.9, 1.1), self._again)  # noqa: S311 -- as above

    def _again(self) -> None:
        self._start(self._relearn())

    async def _relearn(self) -> None:
        try:
            await self.learn()
        except StoreError:
            return  # what is known goes on being used, and whoever reads or writes meets the failure themselves

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
