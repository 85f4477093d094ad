"""Opens stores by URL: built-in schemes and entry points of `hotplate.stores`."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import parse_qsl, urlencode

from hotplate.stores.errors import CatalogueUnreadable, ReleaseNotFound, StoreMisused, extra_installed
from hotplate.stores.file import store as file_store
from hotplate.stores.store import Observer, Store
from hotplate.stores.urls import redacted, require_url, scheme_of, split

if TYPE_CHECKING:
    from hotplate.stores.redis.entry_log import EntryLog

T = TypeVar("T")

GROUP = "hotplate.stores"
COSMOS = ("cosmos", "cosmos+http", "cosmos+https")
REDIS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
BUILT_IN = (*COSMOS, *REDIS, "file")

# What a store must have; it need not be a subclass of Store.
_MEMBERS = ("batch", "coalesce", *(name for name in dir(Store) if not name.startswith("_")))

# A list of URLs, which the path of a folder would swallow.
_SECOND_URL = re.compile(r"[,;\s]+[A-Za-z][A-Za-z0-9+.-]*://")


def is_store_url(url: str) -> bool:
    """Return whether a store has the scheme of *url*."""
    scheme = scheme_of(url)
    return scheme in BUILT_IN or scheme in entry_points(group=GROUP).names


def check_single(url: str) -> None:
    """Raise StoreMisused for several URLs in one."""
    if _SECOND_URL.search(url):
        raise StoreMisused(f"{redacted(url)!r} holds several URLs; give each store its own --store, without commas")


def connect(url: str, observer: Observer | None = None) -> Store:
    """Open the store at *url* without I/O; StoreMisused for an unknown scheme or a malformed URL.

    *observer* counts attempts of stores that bill or throttle, and failures to renew tokens. Other schemes are those of
    installed packages: an entry point with the name of the scheme is a function from URL to Store.
    """
    require_url(url)
    scheme = scheme_of(url)
    check_single(url)

    if scheme == "file":
        return file_store.open_url(url)
    if scheme in REDIS:
        with extra_installed("redis"):
            from hotplate.stores.redis import store as redis  # noqa: PLC0415 -- an extra: only its users need it

            return redis.open_url(url, observer)
    if scheme in COSMOS:
        with extra_installed("cosmos"):
            from hotplate.stores.cosmos import store as cosmos  # noqa: PLC0415 -- as above

            return cosmos.open_url(url, observer)

    installed = entry_points(group=GROUP)
    for entry in installed.select(name=scheme):
        try:
            open_url = entry.load()
        except (ImportError, AttributeError) as error:
            raise StoreMisused(f"the package of the store {scheme}:// cannot be loaded: {error}; mend it") from error
        try:
            store = open_url(url)
        except (TypeError, ValueError) as error:
            # Its message may hold a part of the URL, such as a password.
            reason = f": {error}" if redacted(url) == url else ""
            if isinstance(error, TypeError):  # as for a subclass of Store that lacks a method
                raise StoreMisused(
                    f"the store {scheme}:// does not fit this hotplate{reason}; upgrade its package"
                ) from error
            raise StoreMisused(f"the store {scheme}:// does not accept {redacted(url)!r}{reason}") from error
        lacking = [name for name in _MEMBERS if not hasattr(store, name)]
        if lacking:
            raise StoreMisused(
                f"the store {scheme}:// does not fit this hotplate: it has no {', '.join(lacking)}; upgrade its package"
            )
        return cast("Store", store)

    known = sorted({*BUILT_IN, *installed.names})
    raise StoreMisused(f"{redacted(url)!r} is not the URL of a store; known schemes: {', '.join(known)}")


def open_entry_log(url: str, name: str, observer: Observer | None = None) -> "EntryLog":
    """Open the log of entries *name* in the Redis of a store, without I/O; StoreMisused for another or a malformed URL.

    *observer* counts failures to renew tokens.
    """
    check_single(url)
    if scheme_of(url) not in REDIS:
        raise StoreMisused(f"{redacted(url)!r} is not the URL of a Redis: write redis://HOST:6379/0 or similar")
    with extra_installed("redis"):
        from hotplate.stores.redis import entry_log  # noqa: PLC0415 -- an extra: only its users need it

        return entry_log.open_entry_log(url, name, observer)


@asynccontextmanager
async def opened(
    store: str | Store, observer: Observer | None = None, *, must_exist: bool = False
) -> AsyncIterator[Store]:
    """Open the store at a URL, or take an open one, and close it.

    With *must_exist*, raises ReleaseNotFound for an empty store.
    """
    if not hasattr(store, "records"):  # not a Store
        require_url(store)
    connection = connect(store, observer) if isinstance(store, str) else store
    try:
        if must_exist:
            await _check_exists(connection, store)
        yield connection
    finally:
        await connection.close()


def run_on(
    store: str | Store,
    act: Callable[[Store], Awaitable[T]],
    observer: Observer | None = None,
    *,
    must_exist: bool = False,
) -> T:
    """Run *act* on a store in a new event loop, in another thread if this one runs a loop, then close the store.

    Returns the result of *act*. With *must_exist*, raises ReleaseNotFound for an empty store.
    """

    async def run() -> T:
        async with opened(store, observer, must_exist=must_exist) as connection:
            return await act(connection)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, run()).result()


def run_between(
    source: str | Store,
    target: str | Store,
    act: Callable[[Store, Store], Awaitable[T]],
    observer: Observer | None = None,
) -> T:
    """Run *act* on *source* and *target* in a new event loop, then close both.

    *observer* counts attempts of the target. Raises StoreMisused if both are the same, ReleaseNotFound for an empty
    source.
    """
    if source == target:
        where = redacted(source) if isinstance(source, str) else "one store"
        raise StoreMisused(f"{where} is given as both stores; name two")

    async def both(other: Store) -> T:
        async with opened(source, must_exist=True) as origin:
            return await act(origin, other)

    return run_on(target, both, observer)


async def _check_exists(store: Store, source: str | Store) -> None:
    """Raise ReleaseNotFound for an empty store; *source* is its URL, if known."""
    try:
        if (await store.catalogue()).generation or await store.incarnations():
            return
    except CatalogueUnreadable:  # handled by each verb
        return
    raise never_published(source if isinstance(source, str) else None)


def never_published(url: str | None = None) -> ReleaseNotFound:
    """Return the error of an empty store, by its *url* if that is known."""
    shown = "this store" if url is None else redacted(url)
    absent = ", and the folder does not exist" if url is not None and lacks_folder(url) else ""
    return ReleaseNotFound(
        f"nothing was ever published to {shown}{absent}; publish to it with `hotplate publish`, or check --store"
    )


def lacks_folder(url: str) -> bool:
    """Return whether the folder of a file:// store is missing."""
    return scheme_of(url) == "file" and not Path(url.removeprefix("file://")).exists()


def with_max_ru(url: str, max_ru: int) -> str:
    """Return *url* with another `max_ru`; StoreMisused if the store has no request units."""
    if scheme_of(url) not in COSMOS:
        raise StoreMisused(f"--max-ru is for Cosmos DB; {redacted(url)} has no request units, so leave it out")
    parts = split(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "max_ru"]
    return parts._replace(query=urlencode([*kept, ("max_ru", str(max_ru))])).geturl()


def share_of(url: str, writers: int) -> str:
    """Return *url* with its request units, if limited, divided among *writers* processes."""
    if scheme_of(url) not in COSMOS:
        return url
    with extra_installed("cosmos"):
        from hotplate.stores.cosmos.url import parse  # noqa: PLC0415 -- as above

    most = parse(url).writing_ru
    return url if most is None else with_max_ru(url, max(1, most // writers))
