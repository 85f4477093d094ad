"""What a comparison of stores needs: stores that are started here, one set of lists in all of them, and services."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, urlsplit

from hotplate.bench import process
from hotplate.bench.errors import BenchMisused
from hotplate.bench.lists import Shape
from hotplate.bench.progress import ProgressDisplay
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import COSMOS, REDIS, connect, opened
from hotplate.stores.errors import StoreMisused
from hotplate.stores.keys import USER
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import publish
from hotplate.stores.store import Row, Store
from hotplate.stores.transfer import copy
from hotplate.stores.urls import redacted, scheme_of
from hotplate.stores.verification import load_manifest

LIST_LENGTH = 20

# Of the emulator that is started here: enough for lists to be written in seconds.
EMULATOR_RU = 10_000


# Settings that say how to connect to a store; all others of hotplate are kept away from what is measured.
STORE_SETTINGS = ("HOTPLATE_REDIS_", "HOTPLATE_COSMOS_")


def through_sdk(url: str) -> bool:
    """Return whether the store at *url* is read through azure-cosmos."""
    return scheme_of(url) in COSMOS and parse_qs(urlsplit(url).query).get("client") == ["sdk"]


def store_settings(url: str) -> dict[str, str]:
    """Return the environment in which a process of ours finds the store at *url*."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(STORE_SETTINGS)}
    return {"HOTPLATE_STORE": url} | kept


@dataclass(frozen=True, slots=True)
class Candidate:
    """One store of a comparison, with the service that reads it."""

    name: str
    url: str
    manifest: Manifest
    service: process.Server

    @property
    def emulated(self) -> bool:
        """Whether its latencies are an emulator's."""
        return process.is_emulated(self.url)

    @property
    def metered(self) -> bool:
        """Whether reads are paid for by request units."""
        return scheme_of(self.url) in COSMOS


@dataclass(frozen=True, slots=True)
class Setup:
    """All candidates and the users who are requested; `notes` say what was left out or made up."""

    candidates: tuple[Candidate, ...]
    users: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnStores:
    """Stores that were started here, and what could not be."""

    urls: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


@contextmanager
def own_stores(latency: str) -> Iterator[OwnStores]:
    """Start a folder, a Redis where there is one, and an emulator, read twice; they are gone when the block ends."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplate-bench-"))
        urls, notes = [f"file://{folder}/store"], list[str]()
        if process.redis_installed():
            redis = stack.enter_context(process.redis_serving(core=process.STORE_CORE))
            stack.enter_context(process.raised_priority([redis.execute("INFO", "server")["process_id"]]))
            urls.append(redis.url())
        else:
            notes.append(f"Redis is left out: {process.REDIS_MISSING}.")
        cosmos = stack.enter_context(own_cosmos(latency, EMULATOR_RU))
        yield OwnStores((*urls, cosmos, f"{cosmos}&client=sdk"), tuple(notes))


@contextmanager
def own_cosmos(latency: str, ru: int) -> Iterator[str]:
    """Start an emulator with an assumed latency, and yield the URL of a database of *ru* RU/s in it."""
    with process.emulator_serving("--latency", latency) as emulator, process.before_others(emulator):
        yield f"cosmos+{emulator.url}/hotplate?ru={ru}"


def check_extras(urls: Sequence[str]) -> None:
    """Refuse, before anything is started, a store whose client is not installed, with the command that installs it."""
    for url in urls or ("redis://127.0.0.1:1/0", "cosmos+http://127.0.0.1:1/hotplate?client=sdk"):
        try:
            asyncio.run(_close(url))
        except StoreMisused as error:
            raise BenchMisused(str(error)) from error


async def _close(url: str) -> None:
    await connect(url).close()


@contextmanager
def prepared_stores(
    urls: Sequence[str], users: int, encoding: str, display: ProgressDisplay, *, make_up: bool = True
) -> Iterator[Setup]:
    """Bring the same lists into all stores, and start a service for each.

    They are those of the first store that has a live release; if none has, lists are made up. Raises BenchMisused if
    two stores serve lists of different models, or none has any and *make_up* is false; nothing is written then.
    """
    names = store_names(urls)
    manifests, ids, notes = asyncio.run(
        _share_lists(dict(zip(urls, names, strict=True)), users, encoding if make_up else None, display)
    )
    first = f"/v1/recommendations/{quote(ids[0], safe='')}"
    command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0"]  # or the store would not be read
    with ExitStack() as stack:
        display.start(f"starting {len(urls)} services", 1.0)
        services = [
            stack.enter_context(process.service_serving([*command, *_patience(url)], first, store_settings(url)))
            for url in urls
        ]
        stack.enter_context(process.before_others(*services))
        candidates = map(Candidate, names, urls, manifests, services)
        yield Setup(tuple(candidates), tuple(ids), tuple(notes))


def _patience(url: str) -> tuple[str, ...]:
    """Return options that let reads of an emulator take longer than any real store's may: it has no core of its own."""
    return ("--budget", "1") if process.is_emulated(url) else ()


def store_names(urls: Sequence[str]) -> list[str]:
    """Name each store by its kind, by its URL where several are of one kind, and by a number where that is alike, too.

    URLs are shown without what may be secret, so two of one server can look the same.
    """
    kinds = [_kind(url) for url in urls]
    names = [
        kind if kinds.count(kind) == 1 else f"{kind} {redacted(url)}" for kind, url in zip(kinds, urls, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _kind(url: str) -> str:
    scheme = scheme_of(url)
    if scheme in COSMOS:
        return "Cosmos DB" + " through the SDK" * through_sdk(url) + ", emulated" * (process.is_emulated(url))
    return "files" if scheme == "file" else "Redis" if scheme in REDIS else f"{scheme}://"


async def _share_lists(
    named: dict[str, str], users: int, encoding: str | None, display: ProgressDisplay
) -> tuple[list[Manifest], list[str], list[str]]:
    """Return the manifest of what each store serves then, the users to request, and notes."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(url)) for url in named]
        live = [(await store.catalogue()).live_ref for store in stores]
        await _require_same_lists(stores, list(named), live)
        source, notes = next((store for store, release in zip(stores, live, strict=True) if release), None), list[str]()
        if source is None:
            if encoding is None:
                raise BenchMisused(f"{', '.join(map(redacted, named))} serves nothing yet: run hotplate publish first")
            source = stores[0]
            notes.append(f"Lists of {LIST_LENGTH} items are made up for {users:,} users.")
            display.start(f"writing lists for {users:,} users into {next(iter(named.values()))}", 1.0)
            await _publish_made_up(source, users, encoding, display)
        release = (await source.catalogue()).live_ref
        if release is None:
            raise BenchMisused("the lists that were written are not live; another process changed that")
        for name, store in zip(named.values(), stores, strict=True):
            if (await store.catalogue()).live_ref is None:
                display.start(f"writing the lists into {name}", 1.0)
                await copy(source, store, release.id, on_progress=display.step)
        manifests = [await load_manifest(store, await _live(store)) for store in stores]
        ids = await _first_users(source, release, users)
    return manifests, ids, notes


async def _live(store: Store) -> ReleaseRef:
    found = (await store.catalogue()).live_ref
    if found is None:
        raise BenchMisused("a store serves nothing any more; another process changed that")
    return found


async def _require_same_lists(stores: Sequence[Store], urls: Sequence[str], live: Sequence[ReleaseRef | None]) -> None:
    held = [
        (url, await load_manifest(store, release))
        for store, url, release in zip(stores, urls, live, strict=True)
        if release
    ]
    for url, manifest in held[1:]:
        first_url, first = held[0]
        if not manifest.has_lists_of(first):
            raise BenchMisused(
                f"{redacted(url)} serves release {manifest.release} and {redacted(first_url)} {first.release}, which "
                "are not of one model; publish one model to both, or bring one release into both: hotplate releases "
                "copy ID --from URL --to URL"
            )


async def _publish_made_up(store: Store, users: int, encoding: str, display: ProgressDisplay) -> None:
    shape = Shape(users, LIST_LENGTH)

    async def batches() -> AsyncIterator[list[Row]]:
        for rows in shape.batches(shape.drawn()):
            yield rows

    await publish(store, batches(), plan=shape.plan, about={}, encoding=encoding, on_progress=display.step)


async def _first_users(store: Store, release: ReleaseRef, most: int) -> list[str]:
    ids = list[str]()
    async with aclosing(store.scan(release)) as scanned:  # type: ignore[type-var]  # an iterator by contract, a generator in all stores
        async for row in scanned:
            if row.key.startswith(USER):
                ids.append(row.key.removeprefix(USER))
            if len(ids) == most:
                break
    if not ids:
        raise BenchMisused(f"the release {release.id} holds no user's list")
    return ids
