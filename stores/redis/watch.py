"""Seeing a flip: the server says so on a channel, and a look once a second is the net below."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from stores.catalogue import Catalogue
from stores.errors import StoreError
from stores.redis.link import Link
from stores.redis.url import Address

if TYPE_CHECKING:
    from stores.redis.wire import Wire

POLL_S = 1.0


async def changes(
    address: Address, channel: str, catalogue: Callable[[], Awaitable[Catalogue]], deadline_s: float
) -> AsyncIterator[Catalogue]:
    """Yield the catalogue now and after each change, on a connection of its own; raises what *catalogue* raises."""
    changed = asyncio.Event()
    link = Link(address, deadline_s, unasked=changed.set)
    listening: Wire | None = None
    seen: Catalogue | None = None
    try:
        while True:
            changed.clear()
            with suppress(StoreError):  # where nothing can be heard, looking is enough; the link paces the attempts
                wire = await link.wire()
                if wire is not listening:
                    await wire.ask(b"SUBSCRIBE", channel)
                    listening = wire
            found = await catalogue()
            if seen is None or found.version != seen.version:
                seen = found
                yield found
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await changed.wait()
    finally:
        await link.close()
