"""Opening a store for one verb, and closing it whatever happens."""

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stores.store import Store

T = TypeVar("T")


def with_store(url: str | None, act: "Callable[[Store], Awaitable[T]]") -> T:
    """Run *act* on the store at *url*, by default the one in the user's own data folder."""
    from stores.connect import connect, default_url

    async def run() -> T:
        store = connect(url or default_url())
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(run())
