"""Cases of one process and files: what publishing costs a list, and what reading does, key by key or many at once."""

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.payload import Payload
from aiohttp.test_utils import make_mocked_request

from hotplate.bench.lists import Shape, key_of
from hotplate.bench.micro.harness import (
    BenchmarkSize,
    Candidates,
    Case,
    Line,
    RoundValues,
    Stopwatch,
    at_most,
    require_room,
)
from hotplate.bench.micro.servers import LIST_LENGTH, id_of
from hotplate.serve.api.handlers import Handlers, RouteHandler
from hotplate.serve.api.parameters import JSON
from hotplate.serve.api.scoring import Scoring
from hotplate.serve.embedded import open_lists
from hotplate.serve.sync_lists import open_sync
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.keys import USER
from hotplate.stores.publication import publish
from hotplate.stores.store import Row

# Bytes of disk that must be free per byte of keys and values: large values leave pages partly empty.
ROOM = 2.0
# Lists that are read before the clock is looked at again, and users of a batch.
COUNT = 1_000


@dataclass(frozen=True, slots=True)
class Published:
    """One publish: its release, and what it took without the making of rows."""

    release: ReleaseRef
    stored_bytes: int
    round: RoundValues


def publish_to(url: str, shape: Shape, shared: Sequence[bytes], encoding: str = "json") -> Published:
    """Publish lists of *shape*, their values taken from *shared*, again and again, into the store at *url*."""
    whole, making = Stopwatch(), Stopwatch()

    async def rows() -> AsyncIterator[list[Row]]:
        batches = shape.batches(shared)
        while True:
            with making.running():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    async def published() -> Published:
        store = connect(url)
        try:
            with whole.running():
                written = await publish(store, rows(), plan=shape.plan, about={}, encoding=encoding)
            live = (await store.catalogue()).live_ref
            if live is None:
                raise RuntimeError("nothing is live after a publish")
            rate = shape.users / (whole.wall_s - making.wall_s)
            cpu_us = (whole.cpu_s - making.cpu_s) * 1e6 / shape.users
            return Published(live, written.manifest.bytes, {"rate": rate, "CPU": cpu_us})
        finally:
            await store.close()

    return asyncio.run(published())


@contextmanager
def _files(size: BenchmarkSize) -> Iterator[Candidates]:
    """Publish all users' lists at about 600 bytes."""
    shape = Shape(size.users, LIST_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        require_room(Path(folder), ROOM * shape.plan.payload_bytes)
        yield {"20 items": partial(_publish_once, shape, shape.values(), Path(folder))}


def _publish_once(shape: Shape, values: Sequence[bytes], folder: Path) -> RoundValues:
    shutil.rmtree(folder / "store", ignore_errors=True)
    published = publish_to(f"file://{folder}/store", shape, values)
    (file,) = (folder / "store" / "releases").glob("*.mdb")
    return {**published.round, "file / data": file.stat().st_size / published.stored_bytes}


# Reading


@contextmanager
def _in_process(size: BenchmarkSize) -> Iterator[Candidates]:
    """Read random lists of all users, from files and from a dict, and a thousand users in one request.

    The dict holds a value a key, as a real one would: shared values would stay in the processor's cache.
    """
    shape, few = Shape(size.users, LIST_LENGTH), Shape(COUNT, LIST_LENGTH)
    users = [id_of(user) for user in range(COUNT)]
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner, ExitStack() as stack:
        release = publish_to(f"file://{folder}/all", shape, shape.values()).release
        every = stack.enter_context(open_sync(f"file://{folder}/all"))
        publish_to(f"file://{folder}/few", few, few.drawn())
        store, lists = LmdbStore(Path(folder) / "all"), open_lists(f"file://{folder}/few")
        runner.run(lists.__aenter__())
        get: Callable[[str], bytes | None] = partial(store.get, release)
        runner.run(store.warm(release))  # pages just written may have left the memory
        copies = {key: value for key in map(key_of, range(size.users)) if (value := get(key)) is not None}
        batch, rows = {"users": users, "n": 10}, {"data": [{"user": user, "n": "10"} for user in users]}
        serve = partial(_serve_many, runner, seconds=size.round_s)
        try:
            yield {
                "get": partial(_read_one_by_one, get, size),
                "get of a dict": partial(_read_one_by_one, copies.get, size),
                "list": partial(_read_one_by_one, lambda key: every.personal(key.removeprefix(USER)), size),
                f"batch[json-{JSON}]": partial(serve, Handlers(lists.reader).recommend_many, batch),
                "score[json-records]": partial(serve, Scoring(lists.reader).score, rows),
            }
        finally:
            runner.run(lists.__aexit__(None, None, None))
            runner.run(store.close())


def _read_one_by_one(get: Callable[[str], object], size: BenchmarkSize) -> RoundValues:
    """Read lists of random keys: new strings, as requests make them, so a dict has to hash them."""
    watch, done, ends_at = Stopwatch(), 0, time.perf_counter() + size.round_s
    while not done or time.perf_counter() < ends_at:
        keys = [key_of(user) for user in random.choices(range(size.users), k=COUNT)]  # noqa: S311 -- spreads reads
        with watch.running():
            for key in keys:
                get(key)
        done += COUNT
    return watch.round(done)


def _serve_many(runner: asyncio.Runner, handler: RouteHandler, body: object, *, seconds: float) -> RoundValues:
    """Serve all users in one request, from its body to its answer's bytes; neither parsing of HTTP nor sending."""
    watch, done = Stopwatch(), 0

    async def serve() -> None:
        nonlocal done
        loop = asyncio.get_running_loop()
        payload = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
        payload.feed_data(json.dumps(body).encode())
        payload.feed_eof()
        # It keeps what is read of it, and is read again each time.
        request: web.Request = make_mocked_request("POST", "/", {"Accept": JSON}, payload=payload)
        ends_at = time.perf_counter() + seconds
        while not done or time.perf_counter() < ends_at:
            with watch.running():
                response = await handler(request, "", "")
                if isinstance(response.body, Payload):  # it is made while it is sent
                    await response.body.as_bytes()
            done += COUNT

    runner.run(serve())
    return watch.round(done)


CASES = (
    Case(
        "in_process",
        _in_process,
        {
            "get / get of a dict: CPU": Line(
                "a warm read from a file of 1,000,000 users, compared with a dict: CPU", at_most(3)
            ),
            "get: CPU": Line("the same: CPU"),
            "list: CPU": Line("a list of 10 items from `hotplate.open_sync`: CPU", at_most(200)),
            f"batch[json-{JSON}]: CPU": Line("a user of a batch of 1,000, 10 items each, from files: CPU", at_most(4)),
            "score[json-records]: CPU": Line("the same as Azure ML scores it: CPU", at_most(4)),
        },
    ),
    Case(
        "files",
        _files,
        {
            "20 items: CPU": Line(
                "publishing 1,000,000 lists of 20 items (598 bytes) to files: CPU of a list", at_most(5)
            ),
            "20 items: rate": Line("the same: lists/s"),
            "20 items: file / data": Line("the same: size of the file, compared with keys and values", at_most(1.2)),
        },
    ),
)
