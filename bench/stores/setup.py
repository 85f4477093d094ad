"""The stores of a comparison: all with the same release, each behind a service of its own."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.errors import BenchFailed, BenchMisused
from bench.lists import Shape
from bench.process import (
    EMULATOR_METRICS,
    REDIS_MISSING,
    Server,
    emulator_serving,
    read_metrics,
    redis_installed,
    redis_serving,
    service_serving,
)
from bench.progress import ProgressDisplay
from stores.catalogue import ReleaseRef
from stores.connect import connect
from stores.keys import USER
from stores.lifecycle import publish
from stores.manifest import Manifest
from stores.store import Row, Store
from stores.transfer import copy
from stores.urls import redacted, scheme_of
from stores.verification import load_manifest

EMULATOR = "local emulator, not Azure"
EMULATED_SCHEMES = {"cosmos+http", "cosmos+https"}
LIST_LENGTH = 20

# Settings that say how to connect to a store; all others of hotplate are kept away from what is measured.
STORE_SETTINGS = ("HOTPLATE_REDIS_", "HOTPLATE_COSMOS_")


@dataclass(frozen=True, slots=True)
class StoreServer:
    """What the server of a store reports of itself; each function returns None for what is not known."""

    cpu_s: Callable[[], float | None]
    """CPU time that it has used, for reads and everything else."""

    memory_bytes: Callable[[], int | None]
    """Memory that it has in use."""

    stored_bytes: Callable[[], int | None]
    """Space that its data takes, in memory or on disk."""


def difference(after: float | None, before: float | None) -> float | None:
    """Return what was used between two readings; None if one is not known."""
    return None if after is None or before is None else after - before


def store_server(url: str) -> StoreServer:
    """Return what can report of the server of the store at *url*; on one that others use too, their part is included.

    The service itself reads files through a memory map, whose pages can be dropped at any time. An emulator's CPU and
    memory are not a measure of what the service that it stands for uses; what it stores is as that would charge for it.
    """
    match scheme_of(url):
        case "file":
            return StoreServer(lambda: 0.0, lambda: 0, partial(_folder_bytes, Path(url.removeprefix("file://"))))
        case "redis" | "rediss" | "unix":
            info = partial(_redis_info, url)
            return StoreServer(
                lambda: info("cpu", "used_cpu_user", "used_cpu_sys"),  # of all its threads, to the microsecond
                lambda: int(info("memory", "used_memory_rss")),  # with what its allocator has not given back
                lambda: int(info("memory", "used_memory")),
            )
        case "cosmos+http" | "cosmos+https":
            metric = partial(_emulator_metric, url)
            return StoreServer(
                partial(metric, "process_cpu_seconds_total"),
                lambda: _whole(metric("process_resident_memory_bytes")),
                lambda: _whole(metric("hotplate_cosmos_emulator_stored_bytes", own_database=True)),
            )
        case _:
            return UNKNOWN_SERVER


def _folder_bytes(folder: Path) -> int:
    """Add up blocks on disk, as the files are sparse."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _redis_info(url: str, section: str, *names: str) -> float:
    from redis import Redis  # noqa: PLC0415 -- an extra: only who measures Redis needs it

    from stores.redis.url import parse  # noqa: PLC0415 -- as above

    at = parse(url)
    where: dict[str, Any] = (
        {"unix_socket_path": at.path}
        if at.path
        else {"host": at.host, "port": at.port, "ssl": at.tls} | ({"ssl_ca_certs": at.ca} if at.tls else {})
    )
    with Redis(db=at.db, username=at.user, password=at.password, **where) as client:
        values: Any = client.info(section)
    return sum(float(values[name]) for name in names)


def _emulator_metric(url: str, name: str, *, own_database: bool = False) -> float | None:
    """Add up a metric of our emulator; None where another server, or none, is there."""
    from stores.cosmos.url import parse  # noqa: PLC0415 -- other stores have other addresses

    at = parse(url)
    own = {"container": f"{at.database}/"} if own_database else {}
    try:
        values = read_metrics(at.endpoint + EMULATOR_METRICS, name, at.ca, **own)
    except (OSError, HTTPException, UnicodeDecodeError):
        return None
    return sum(values) if values or own_database else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


UNKNOWN_SERVER = StoreServer(lambda: None, lambda: None, lambda: None)


def emulator_label(url: str) -> str | None:
    """Return what to show in place of a latency where *url* names an emulator: its times are not the service's."""
    return EMULATOR if scheme_of(url) in EMULATED_SCHEMES else None


def store_settings(url: str) -> dict[str, str]:
    """Return the environment in which a process of ours finds the store at *url*."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(STORE_SETTINGS)}
    return {"HOTPLATE_STORE": url} | kept


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """Connect to a store until the block ends."""
    store = connect(url)
    try:
        yield store
    finally:
        await store.close()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One store of a comparison, for as long as that lasts."""

    name: str
    url: str
    service: Server
    server: StoreServer

    @property
    def shown_url(self) -> str:
        """Its URL without what may be secret."""
        return redacted(self.url)

    @property
    def emulated(self) -> str | None:
        """What to show in place of its latencies, if it is an emulator."""
        return emulator_label(self.url)


@dataclass(frozen=True, slots=True)
class Setup:
    """All candidates, the release that all of them hold, and the users who are requested."""

    candidates: tuple[Candidate, ...]
    manifest: Manifest
    users: tuple[str, ...]
    started_here: bool
    """Whether the stores were started for this comparison, and the lists made up."""


@contextmanager
def own_stores(emulator_ru: int | None) -> Iterator[list[str]]:
    """Start a folder, a Redis and perhaps an emulator, if no stores are given; gone when the block ends."""
    if not redis_installed():
        raise BenchFailed(f"{REDIS_MISSING}, or give the URLs of the stores")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplate-bench-"))
        urls = [f"file://{folder}/store", stack.enter_context(redis_serving()).url()]
        if emulator_ru is not None:
            emulator = stack.enter_context(emulator_serving())
            urls.append(f"cosmos+{emulator.url}/hotplate?ru={emulator_ru}")
        yield urls


@contextmanager
def prepared_stores(
    urls: Sequence[str], users: int, encoding: str, display: ProgressDisplay, *, started_here: bool
) -> Iterator[Setup]:
    """Bring one release into all stores, and start a service for each.

    The release is the live one of the first store that has any; if none has, lists are made up for *users*. Raises
    BenchMisused where two stores have different releases, and nothing is written into either then.
    """
    manifest, ids = asyncio.run(_share_release(urls, users, encoding, display))
    first = f"/v1/recommendations/{quote(ids[0], safe='')}"
    with ExitStack() as stack:
        candidates = list[Candidate]()
        for name, url in zip(store_names(urls), urls, strict=True):
            display.start(f"starting the service of {name}", 1.0)
            command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0"]  # or the store would not be read
            service = stack.enter_context(service_serving(command, first, store_settings(url)))
            candidates.append(Candidate(name, url, service, store_server(url)))
        yield Setup(tuple(candidates), manifest, tuple(ids), started_here)


def store_names(urls: Sequence[str]) -> list[str]:
    """Name each store as briefly as distinguishes it from the others: by its scheme, or by its URL."""
    schemes = [f"{scheme_of(url)}://" for url in urls]
    shown = schemes if len(set(schemes)) == len(urls) else [redacted(url) for url in urls]
    if len(set(shown)) < len(urls):
        shown = [f"{name} ({number})" for number, name in enumerate(shown, 1)]
    return shown


async def _share_release(
    urls: Sequence[str], users: int, encoding: str, display: ProgressDisplay
) -> tuple[Manifest, list[str]]:
    names = store_names(urls)
    display.start(f"writing lists for {users:,} users into {names[0]}", 1.0)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(url)) for url in urls]
        live = [(await store.catalogue()).live_ref for store in stores]
        held = [(store, release) for store, release in zip(stores, live, strict=True) if release]
        source, release = held[0] if held else (stores[0], await _publish_made_up(stores[0], users, encoding, display))
        manifest = await load_manifest(source, release)
        await _require_same_release(stores, urls, live, manifest)
        for name, store, already in zip(names, stores, live, strict=True):
            if already is None and store is not source:
                display.start(f"writing the release into {name}", 1.0)
                await copy(source, store, release.id, on_progress=display.step)
        ids = [row.key.removeprefix(USER) for row in await first_user_rows(source, release, users)]
    if not ids:
        raise BenchMisused(f"the release {release.id} holds no user's list")
    return manifest, ids


async def _require_same_release(
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


async def _publish_made_up(store: Store, users: int, encoding: str, display: ProgressDisplay) -> ReleaseRef:
    shape = Shape(users, LIST_LENGTH)

    async def batches() -> AsyncIterator[list[Row]]:
        for rows in shape.batches(shape.drawn()):
            yield rows

    result = await publish(store, batches(), plan=shape.plan, about={}, encoding=encoding, on_progress=display.step)
    return (await store.catalogue()).find(result.manifest.release).ref


async def first_user_rows(store: Store, release: ReleaseRef, most: int) -> list[Row]:
    """Read the first *most* users' rows of a release."""
    rows = list[Row]()
    async with aclosing(store.scan(release)) as scanned:  # type: ignore[type-var]  # an iterator by contract, a generator in all stores
        async for row in scanned:
            if row.key.startswith(USER):
                rows.append(row)
            if len(rows) == most:
                break
    return rows
