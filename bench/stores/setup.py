"""The stores of a comparison: all with the same release, each behind a service of its own."""

import asyncio
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from bench.errors import BenchFailed, BenchMisused
from bench.lists import Shape
from bench.process import Server, free_port, serving
from stores.catalogue import ReleaseId
from stores.compression import compress
from stores.connect import connect
from stores.keys import USER
from stores.lifecycle import load_manifest, publish
from stores.manifest import Manifest
from stores.store import Row, Store
from stores.transfer import copy
from stores.urls import redacted

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
    from bench.process import installed, redis_serving  # noqa: PLC0415 -- an extra: other stores do without

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
        live = [(await store.catalogue()).live for store in stores]
        source = next((place for place, release in enumerate(live) if release), None)
        if source is None:
            source, release = 0, (await _fill(stores[0], users, encoding)).release
        else:
            release = _chosen(live)
        manifest = await load_manifest(stores[source], release)
        await _must_be_alike(stores, urls, live, manifest)
        for place, store in enumerate(stores):
            if live[place] is None and place != source:
                await copy(stores[source], store, release)
        ids = await _users(stores[source], release, users)
    finally:
        for store in stores:
            await store.close()
    if not ids:
        raise BenchMisused(f"the release {release} holds no user's list")
    return manifest, ids


def _chosen(live: Sequence[ReleaseId | None]) -> ReleaseId:
    return next(release for release in live if release)


async def _must_be_alike(
    stores: Sequence[Store], urls: Sequence[str], live: Sequence[ReleaseId | None], manifest: Manifest
) -> None:
    for store, url, release in zip(stores, urls, live, strict=True):
        if release is None:
            continue
        if release != manifest.release or await load_manifest(store, release) != manifest:
            raise BenchMisused(
                f"{redacted(url)} serves release {release}, and another store {manifest.release}; for a comparison "
                "bring one into both: hotplate releases copy ID --from URL --to URL"
            )


async def _fill(store: Store, users: int, encoding: str) -> Manifest:
    shape = Shape(users, LIST_LENGTH)

    async def batches() -> AsyncIterator[list[Row]]:
        for rows in shape.batches(shape.drawn()):
            yield rows

    if encoding == "zstd":
        compressed = await compress(batches(), shape.plan)
        return await publish(store, compressed.batches, plan=compressed.plan, about={}, encoding=encoding)
    return await publish(store, batches(), plan=shape.plan, about={}, encoding=encoding)


async def _users(store: Store, release: ReleaseId, most: int) -> list[str]:
    ids = list[str]()
    async for key, _ in store.scan(release):
        if key.startswith(USER):
            ids.append(key.removeprefix(USER))
        if len(ids) == most:
            break
    return ids


EMULATORS = {"cosmos+http": "local emulator, not Azure", "cosmos+https": "local emulator, not Azure"}

METRICS = "/__emulation/metrics"
PATIENCE_S = 5.0
"""When a server that does not tell what it spends is given up."""


class Backing(Protocol):
    """What may be known of the far side of a store; None for what is not."""

    def cpu_s(self) -> float | None:
        """CPU time that its server has spent, on reads and all else."""

    def memory_bytes(self) -> int | None:
        """Memory that its server has in use."""

    def stored_bytes(self) -> int | None:
        """Room that its data takes, in memory or on disk."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Files, read through a map by the service itself: no server spends anything."""

    folder: Path

    def cpu_s(self) -> float:
        """See `Backing`: there is none to spend any."""
        return 0.0

    def memory_bytes(self) -> int:
        """See `Backing`: what is mapped of the files can be dropped at any time."""
        return 0

    def stored_bytes(self) -> int:
        """See `Backing`: blocks on disk, as files of maps have holes."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Redis:
    """A Redis server, which tells what it spends; on one that others use too, their part is in it."""

    url: str

    def cpu_s(self) -> float:
        """See `Backing`: of all its threads, to the microsecond."""
        told = self._info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    def memory_bytes(self) -> int:
        """See `Backing`: resident, so with what its allocator has not given back."""
        return int(self._info("memory")["used_memory_rss"])

    def stored_bytes(self) -> int:
        """See `Backing`: what it asked its allocator for."""
        return int(self._info("memory")["used_memory"])

    def _info(self, section: str) -> Any:  # noqa: ANN401 -- redis-py parses it to whatever it is
        from redis import Redis as Client  # noqa: PLC0415 -- an extra: only who measures Redis needs it

        from stores.redis.url import parse  # noqa: PLC0415 -- as above

        at = parse(self.url)
        where: dict[str, Any] = (
            {"unix_socket_path": at.path}
            if at.path
            else {"host": at.host, "port": at.port, "ssl": at.tls} | ({"ssl_ca_certs": at.ca} if at.tls else {})
        )
        with Client(db=at.db, username=at.user, password=at.password, **where) as client:
            return client.info(section)


@dataclass(frozen=True, slots=True)
class CosmosEmulator:
    """Our own emulator of Cosmos DB, whose metrics tell what it spends; of any other server nothing is known."""

    url: str

    def cpu_s(self) -> float | None:
        """See `Backing`: of the emulator, which is no measure of what the service that it stands for spends."""
        return self._sum("process_cpu_seconds_total")

    def memory_bytes(self) -> int | None:
        """See `Backing`: resident; it keeps all items in memory."""
        return _whole(self._sum("process_resident_memory_bytes"))

    def stored_bytes(self) -> int | None:
        """See `Backing`: of this database's items, as the service would charge for them."""
        return _whole(self._sum("hotplate_cosmos_emulator_stored_bytes", ours_only=True))

    def _sum(self, name: str, *, ours_only: bool = False) -> float | None:
        from stores.cosmos.url import parse  # noqa: PLC0415 -- other stores have other addresses

        at = parse(self.url)
        secure = at.endpoint.startswith("https:")
        trusted = ssl.create_default_context(cafile=at.ca) if secure else None
        try:
            with urlopen(f"{at.endpoint}{METRICS}", timeout=PATIENCE_S, context=trusted) as page:  # noqa: S310 -- http(s), by the store's own parser
                told = page.read().decode()
        except (OSError, HTTPException, UnicodeDecodeError):
            return None
        values = [
            sample.value
            for family in text_string_to_metric_families(told)
            for sample in family.samples
            if sample.name == name and (not ours_only or sample.labels["container"].partition("/")[0] == at.database)
        ]
        return sum(values) if values or ours_only else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A far side that tells nothing of itself."""

    def cpu_s(self) -> None:
        """See `Backing`."""

    def memory_bytes(self) -> None:
        """See `Backing`."""

    def stored_bytes(self) -> None:
        """See `Backing`."""


def backing(url: str) -> Backing:
    """Tell what stands behind the store at *url*."""
    match urlsplit(url).scheme:
        case "file":
            return Folder(Path(url.removeprefix("file://")))
        case "redis" | "rediss" | "unix":
            return Redis(url)
        case "cosmos+http" | "cosmos+https":
            return CosmosEmulator(url)
        case _:
            return Unknown()


def emulator(url: str) -> str | None:
    """Say what to show in place of a latency, where *url* names an emulator: its times are not those of the service."""
    return EMULATORS.get(urlsplit(url).scheme)
