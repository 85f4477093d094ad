"""Opening one store, or two, for one verb, and closing them whatever happens."""

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stores.store import Observer, Store

T = TypeVar("T")


def with_store(url: str | None, act: "Callable[[Store], Awaitable[T]]", observer: "Observer | None" = None) -> T:
    """Run *act* on the store at *url*, by default the one in the user's own data folder; *observer* counts its attempts."""
    from stores.connect import connect, default_url

    async def run() -> T:
        store = connect(url or default_url(), observer)
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(run())


def with_stores(
    source: str, target: str, act: "Callable[[Store, Store], Awaitable[T]]", observer: "Observer | None" = None
) -> T:
    """Run *act* on two stores; *observer* counts the attempts of the second. StoreMisused where they are one."""
    from stores.connect import connect
    from stores.errors import StoreMisused
    from stores.urls import redacted

    if source == target:
        raise StoreMisused(f"{redacted(source)} is given as both stores; name two")

    async def run() -> T:
        here = connect(source)
        try:
            there = connect(target, observer)
            try:
                return await act(here, there)
            finally:
                await there.close()
        finally:
            await here.close()

    return asyncio.run(run())
