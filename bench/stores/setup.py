"""The stores of a comparison: all with the same release, each behind a service of its own."""

import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote

from hotplate.bench import process
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.lists import Shape
from hotplate.bench.options import StoresOptions
from hotplate.bench.progress import ProgressDisplay
from hotplate.bench.quantities import parse_seconds
from hotplate.bench.stores.publication import FIRST_LISTS, first_user_rows, lists_a_second
from hotplate.bench.stores.server import StoreServer, opened, store_server
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.keys import USER
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import publish
from hotplate.stores.store import Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.urls import redacted, scheme_of
from hotplate.stores.verification import load_manifest

EMULATOR = "local emulator, not Azure"
EMULATED_SCHEMES = {"cosmos+http", "cosmos+https"}
LIST_LENGTH = 20
LIVE = "of the live release"

# The share of the budget in which lists are made up and written into all stores, and how many show how fast that is.
FILL_SHARE = 0.2
MEASURED_LISTS = 16_000

# Each list is written, and read back before it goes live.
PASSES = 2

# The share of the budget that a copy of a release may take, and after how long it is foreseen.
COPY_SHARE = 0.5
ESTIMATE_AFTER_S = 5.0

# Settings that say how to connect to a store; all others of hotplate are kept away from what is measured.
STORE_SETTINGS = ("HOTPLATE_REDIS_", "HOTPLATE_COSMOS_")


def emulator_label(url: str) -> str | None:
    """Return what to show in place of a latency where *url* names an emulator: its times are not the service's."""
    return EMULATOR if scheme_of(url) in EMULATED_SCHEMES else None


def store_settings(url: str) -> dict[str, str]:
    """Return the environment in which a process of ours finds the store at *url*."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(STORE_SETTINGS)}
    return {"HOTPLATE_STORE": url} | kept


@dataclass(frozen=True, slots=True)
class CandidateStore:
    """One store of a comparison, for as long as that lasts."""

    name: str
    url: str
    service: process.Server
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

    candidates: tuple[CandidateStore, ...]
    manifest: Manifest
    users: tuple[str, ...]
    started_here: bool
    """Whether the stores were started for this comparison."""

    lists: str = LIVE
    """Where the lists are from, and why there are no more of them."""


@contextmanager
def own_stores(emulator_ru: int | None) -> Iterator[list[str]]:
    """Start a folder, a Redis and perhaps an emulator, if no stores are given; gone when the block ends."""
    if not process.redis_installed():
        raise BenchFailed(f"{process.REDIS_MISSING}, or give the URLs of the stores")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplate-bench-"))
        urls = [f"file://{folder}/store", stack.enter_context(process.redis_serving(core=process.STORE_CORE)).url()]
        if emulator_ru is not None:
            emulator = stack.enter_context(process.emulator_serving(core=process.STORE_CORE))
            urls.append(f"cosmos+{emulator.url}/hotplate?ru={emulator_ru}")
        yield urls


@contextmanager
def prepared_stores(urls: Sequence[str], options: StoresOptions, display: ProgressDisplay) -> Iterator[Setup]:
    """Bring one release into all stores, and start a service for each.

    The release is the live one of the first store that has any. If none has, lists are made up for as many users as all
    stores take in a share of the budget. Raises BenchMisused if two stores have different releases, and nothing is
    written into either then; BenchFailed if a copy of a release would take most of the budget.
    """
    manifest, ids, lists = asyncio.run(_share_release(urls, options, display))
    first = f"/v1/recommendations/{quote(ids[0], safe='')}"
    with ExitStack() as stack:
        display.start(f"starting {len(urls)} services", 1.0)
        command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0"]  # or the store would not be read
        services = [stack.enter_context(process.service_serving(command, first, store_settings(url))) for url in urls]
        named = zip(store_names(urls), urls, services, strict=True)
        candidates = tuple(CandidateStore(name, url, service, store_server(url)) for name, url, service in named)
        yield Setup(candidates, manifest, tuple(ids), not options.urls, lists)


def store_names(urls: Sequence[str]) -> list[str]:
    """Name each store as briefly as distinguishes it from the others: by its scheme, or by its URL."""
    schemes = [f"{scheme_of(url)}://" for url in urls]
    shown = schemes if len(set(schemes)) == len(urls) else [redacted(url) for url in urls]
    if len(set(shown)) < len(urls):
        shown = [f"{name} ({number})" for number, name in enumerate(shown, 1)]
    return shown


async def _share_release(
    urls: Sequence[str], options: StoresOptions, display: ProgressDisplay
) -> tuple[Manifest, list[str], str]:
    """Return the manifest of the release that all stores have then, its users, and where its lists are from."""
    names, lists = store_names(urls), LIVE
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(url)) for url in urls]
        live = [(await store.catalogue()).live_ref for store in stores]
        held = [(store, release) for store, release in zip(stores, live, strict=True) if release]
        if held:
            source, release = held[0]
        else:
            made_up = MadeUpLists(options, display)
            lists = await made_up.plan(dict(zip(names, urls, strict=True)), stores)
            source, release = stores[0], await made_up.publish(names[0], stores[0])
        manifest = await load_manifest(source, release)
        await _require_same_release(stores, urls, live, manifest)
        for name, store, already in zip(names, stores, live, strict=True):
            if already is None and store is not source:
                display.start(f"writing the release into {name}", 1.0)
                on_progress = copy_progress(name, options, display) if held else display.step
                await copy(source, store, release.id, on_progress=on_progress)
        ids = [row.key.removeprefix(USER) for row in await first_user_rows(source, release, options.users)]
    if not ids:
        raise BenchMisused(f"the release {release.id} holds no user's list")
    return manifest, ids, lists


def copy_progress(name: str, options: StoresOptions, display: ProgressDisplay) -> Callable[[int, int], None]:
    """Return what shows the progress of a copy, and ends it with BenchFailed once it is seen to take too long."""
    began_s, most_s = time.monotonic(), COPY_SHARE * parse_seconds(options.budget)

    def on_progress(done: int, total: int) -> None:
        display.step(done, total)
        took_s = time.monotonic() - began_s
        if (all_s := took_s * total / max(1, done)) > most_s and took_s > ESTIMATE_AFTER_S:
            more = math.ceil(all_s / COPY_SHARE / 60) + 1
            raise BenchFailed(
                f"writing the release into {name} takes about {all_s / 60:.1f} minutes of the budget of "
                f"{options.budget}: --budget {more}m would do, or copy it before with hotplate releases copy"
            )

    return on_progress


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


class MadeUpLists:
    """Lists that are made up for a comparison; lives until they are published."""

    def __init__(self, options: StoresOptions, display: ProgressDisplay) -> None:
        self._options = options
        self._display = display
        self._shape = Shape(options.users, LIST_LENGTH)
        self._bodies = self._shape.drawn()

    async def plan(self, urls: Mapping[str, str], stores: Sequence[Store]) -> str:
        """Take as many users as all stores, by name, take in their share of the budget; say how many, and why.

        An account is not measured, because each trial would make a container that is paid for by the hour.
        """
        rows = [row for batch in Shape(MEASURED_LISTS, LIST_LENGTH).batches(self._bodies) for row in batch]
        rates = dict[str, float]()
        for (name, url), store in zip(urls.items(), stores, strict=True):
            if scheme_of(url) != "cosmos":
                self._display.start(f"measuring how fast lists are written into {name}", 1.0)
                rates[name] = await lists_a_second(store, store_server(url), rows)
        fill_s = FILL_SHARE * parse_seconds(self._options.budget)
        fitting = (
            max(FIRST_LISTS, int(fill_s / PASSES / sum(1 / rate for rate in rates.values()))) if rates else math.inf
        )
        users = self._options.users
        if fitting >= users:
            return f"made up for {users:,} users"
        self._shape = replace(self._shape, users=int(fitting))
        slowest = min(rates, key=lambda name: rates[name])
        return (
            f"made up for {fitting:,} users instead of {users:,}, because {slowest} takes {rates[slowest]:,.0f} lists "
            f"a second, and the budget is {self._options.budget}"
        )

    async def publish(self, name: str, store: Store) -> ReleaseRef:
        """Publish them to the first store."""
        shape = self._shape
        self._display.start(f"writing lists for {shape.users:,} users into {name}", 1.0)

        async def batches() -> AsyncIterator[list[Row]]:
            for rows in shape.batches(self._bodies):
                yield rows

        encoding, step = self._options.encoding, self._display.step
        result = await publish(store, batches(), plan=shape.plan, about={}, encoding=encoding, on_progress=step)
        return (await store.catalogue()).find(result.manifest.release).ref
