"""The stores of a comparison: all with the same release, each with a service of its own in front of it."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from bench.backing import Backing, backing, emulator
from bench.errors import BenchFailed, BenchMisused
from bench.launch import Server, free_port, serving
from bench.lists import Shape
from stores.catalogue import ReleaseRef
from stores.compression import compress
from stores.connect import connect
from stores.keys import USER
from stores.lifecycle import publish
from stores.manifest import Manifest
from stores.store import Row, Store
from stores.transfer import copy
from stores.urls import redacted
from stores.verification import load_manifest

LIST_LENGTH = 20
FOR_STORES = ("HOTPLATE_REDIS_", "HOTPLATE_COSMOS_")
"""Settings that say how to get into a store; all others of ours are kept away from what is measured."""

NO_REDIS = (
    "redis-server, which the comparison starts where no URL is given, is not on the PATH; on Debian or Ubuntu: "
    "apt-get install redis-server, or give the URLs of two stores"
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """One store of a comparison, for as long as that lasts."""

    name: str
    url: str
    service: Server
    behind: Backing

    @property
    def shown(self) -> str:
        """Its URL without what may be secret."""
        return redacted(self.url)

    @property
    def emulated(self) -> str | None:
        """What to show in place of its latencies, where it is an emulator."""
        return emulator(self.url)

    @property
    def settings(self) -> dict[str, str]:
        """The environment in which a process of ours finds it."""
        return settings(self.url)


@dataclass(frozen=True, slots=True)
class Field:
    """All contestants, the release that all of them hold, and the users who are asked for."""

    contestants: tuple[Contestant, ...]
    manifest: Manifest
    users: tuple[str, ...]
    made: bool
    """Whether the stores were started for this comparison, and the lists made up."""


@contextmanager
def own_stores() -> Iterator[list[str]]:
    """Start what a comparison needs where it is given no stores: a folder and a Redis, gone when the block ends."""
    from bench.redis_server import installed, redis_serving  # noqa: PLC0415 -- an extra: other stores do without

    if not installed():
        raise BenchFailed(NO_REDIS)
    with tempfile.TemporaryDirectory(prefix="hotplate-bench-") as folder, redis_serving() as redis:
        yield [f"file://{folder}/store", redis.url()]


@contextmanager
def contestants(urls: Sequence[str], users: int, encoding: str, *, made: bool) -> Iterator[Field]:
    """Bring one release into all stores, and start a service for each.

    The release is the live one of the first store that has any; where none has, lists are made up for *users*. Raises
    BenchMisused where two stores have different releases, and nothing is written into either then.
    """
    manifest, ids = asyncio.run(_alike(urls, users, encoding))
    first = f"/v1/recommendations/{quote(ids[0], safe='')}"
    with ExitStack() as stack:
        entered = list[Contestant]()
        for name, url in zip(names(urls), urls, strict=True):
            port = free_port()
            command = [sys.executable, "-m", "hotplate", "serve", "--port", str(port), "--workers", "1"]
            service = stack.enter_context(serving(command, port, first, settings(url)))
            entered.append(Contestant(name, url, service, backing(url)))
        yield Field(tuple(entered), manifest, tuple(ids), made)


def settings(url: str) -> dict[str, str]:
    """Give the environment in which a process of ours finds the store at *url*."""
    return {"HOTPLATE_STORE": url} | {name: value for name, value in os.environ.items() if name.startswith(FOR_STORES)}


def names(urls: Sequence[str]) -> list[str]:
    """Name each store as briefly as tells it from the others: by its scheme, or by its URL."""
    schemes = [f"{urlsplit(url).scheme}://" for url in urls]
    shown = schemes if len(set(schemes)) == len(urls) else [redacted(url) for url in urls]
    if len(set(shown)) < len(urls):
        shown = [f"{name} ({place})" for place, name in enumerate(shown, 1)]
    return shown


async def _alike(urls: Sequence[str], users: int, encoding: str) -> tuple[Manifest, list[str]]:
    stores = [connect(url) for url in urls]
    try:
        live = [(await store.catalogue()).live_ref for store in stores]
        source = next((place for place, release in enumerate(live) if release), None)
        if source is None:
            source, release = 0, await _fill(stores[0], users, encoding)
        else:
            release = _chosen(live)
        manifest = await load_manifest(stores[source], release)
        await _must_be_alike(stores, urls, live, manifest)
        for place, store in enumerate(stores):
            if live[place] is None and place != source:
                await copy(stores[source], store, release.id)
        ids = await _users(stores[source], release, users)
    finally:
        for store in stores:
            await store.close()
    if not ids:
        raise BenchMisused(f"the release {release.id} holds no user's list")
    return manifest, ids


def _chosen(live: Sequence[ReleaseRef | None]) -> ReleaseRef:
    return next(release for release in live if release)


async def _must_be_alike(
    stores: Sequence[Store], urls: Sequence[str], live: Sequence[ReleaseRef | None], manifest: Manifest
) -> None:
    for store, url, release in zip(stores, urls, live, strict=True):
        if release is None:
            continue
        if release.id != manifest.release or await load_manifest(store, release) != manifest:
            raise BenchMisused(
                f"{redacted(url)} serves release {release.id}, and another store {manifest.release}; for a comparison "
                "bring one into both: hotplate releases copy ID --from URL --to URL"
            )


async def _fill(store: Store, users: int, encoding: str) -> ReleaseRef:
    shape = Shape(users, LIST_LENGTH)

    async def batches() -> AsyncIterator[list[Row]]:
        for rows in shape.batches(shape.drawn()):
            yield rows

    if encoding == "zstd":
        compressed = await compress(batches(), shape.plan)
        result = await publish(store, compressed.batches, plan=compressed.plan, about={}, encoding=encoding)
    else:
        result = await publish(store, batches(), plan=shape.plan, about={}, encoding=encoding)
    return (await store.catalogue()).find(result.manifest.release).ref


async def _users(store: Store, release: ReleaseRef, most: int) -> list[str]:
    ids = list[str]()
    async for key, _ in store.scan(release):
        if key.startswith(USER):
            ids.append(key.removeprefix(USER))
        if len(ids) == most:
            break
    return ids
