"""The catalogue as one item of a small container of its own: read by everybody now and then, swapped by its etag."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import orjson

from stores import catalogue as catalogue_record
from stores.catalogue import Catalogue
from stores.cosmos.driver import DEADLINE_S, Containers, Item, Items, Wrote
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.items import CATALOGUE, CONTROL
from stores.cosmos.patience import Patience
from stores.cosmos.throughput import MANUAL_MIN, Throughput
from stores.cosmos.url import Address
from stores.errors import ReleaseConflict, StoreError, StoreMisused

POLL_S = 2.0
"""How often a reader looks: 0.5 RU/s for each process."""

Version = tuple[str, int, str]


class Control:
    """Reads and swaps the catalogue; lives as long as its store."""

    def __init__(
        self,
        address: Address,
        items: Items,
        containers: Containers,
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        self._address = address
        self._items = items
        self._containers = containers
        self._patience = patience
        self._clock = clock
        self._etags = dict[Version, str]()
        """Of the catalogue that was read last."""

        self._ahead_s = time.time() - clock()
        """How far the service's clock is ahead of ours, as of its last word; before any, our own idea of the time."""

        self._one_writer = False

    async def check_writers(self) -> None:
        """Refuse an account where nothing can be compared and set; asks once."""
        if not self._one_writer:
            if (await self._items.account()).many_writers:
                raise StoreMisused(
                    f"the account of {self._address.shown} takes writes in several regions, where two publishers could "
                    f"both change what is live; turn multi-region writes off, or use another account"
                )
            self._one_writer = True

    async def catalogue(self) -> Catalogue:
        """Read the catalogue as publishers do; of generation 0 where there is none yet."""
        try:
            item, etag, now = await self._items.look(CONTROL, CATALOGUE)
        except ContainerMissing:
            return Catalogue(now=self._now())
        self._ahead_s = now - self._clock()
        found = self._parse(item, now)
        self._etags = {found.version: etag}
        return found

    async def glimpse(self) -> tuple[Catalogue, str]:
        """Read the catalogue if that can be done at once; else an empty one, and why it was not read."""
        try:
            return await self.catalogue(), ""
        except StoreError as error:
            return Catalogue(now=self._now()), str(error)

    async def changes(self) -> AsyncIterator[Catalogue]:
        """Yield the catalogue now and after each change, from the nearest region; stale ones may be among them."""
        await self.check_writers()
        seen: Version | None = None
        read = partial(self._items.read, CONTROL, CATALOGUE, DEADLINE_S)
        while True:
            try:
                item = await self._patience.insist(read, at_most_s=POLL_S)
            except ContainerMissing:
                item = None
            found = self._parse(item, self._now())
            if found.version != seen:
                seen = found.version
                yield found
            await asyncio.sleep(POLL_S)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """Replace *old* by *new* unless another was first; an attempt whose answer was lost is no rival."""
        await self._patience.insist(self.check_writers)
        record: Item = {"id": CATALOGUE, "catalogue": orjson.loads(catalogue_record.dump(new))}
        if old.version != Catalogue().version:
            if old.version not in self._etags:
                await self._patience.insist(self.catalogue)
            etag = self._etags.get(old.version)
            if etag is None:
                raise _conflict()
            write = partial(self._items.replace, CONTROL, record, etag)
        else:
            write = partial(self._create, record)
        if not (await self._patience.insist(write)).done:
            found = await self._patience.insist(self.catalogue)
            if found.version != new.version:
                raise _conflict()

    async def _create(self, record: Item) -> Wrote:
        try:
            return await self._items.create(CONTROL, record)
        except ContainerMissing:
            await self.make(CONTROL, None if self._address.throughput is None else Throughput(MANUAL_MIN))
            return await self._patience.settle(partial(self._items.create, CONTROL, record))

    async def make(self, container: str, throughput: Throughput | None) -> None:
        """Make a container, in a database that is made where it is missing; nothing happens where there is one."""
        try:
            await self._containers.create_container(container, throughput)
        except ContainerMissing:
            await self._containers.create_database()
            await self._containers.create_container(container, throughput)

    def _parse(self, item: Item | None, now: float) -> Catalogue:
        if item is None:
            return Catalogue(now=now)
        return catalogue_record.parse(orjson.dumps(item.get("catalogue")), now=now, where=self._address.shown)

    def _now(self) -> float:
        return self._clock() + self._ahead_s


def _conflict() -> ReleaseConflict:
    return ReleaseConflict("the catalogue was changed by somebody else first")
