"""A publisher that is killed in the middle: nobody sees its draft, and what it acknowledged is not written again."""

import asyncio
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import State
from hotplate.stores.connect import connect
from hotplate.stores.store import Plan
from tests.support.cosmos_account import Account
from tests.support.cosmos_simulation import ROWS
from tests.support.redis_server import RedisServer
from tests.support.stores import batches, lapse, publish, published_rows

PUBLISHER = """
import asyncio, sys
from hotplate.stores.connect import connect
from hotplate.stores.publication import publish
from hotplate.stores.store import Plan
from tests.support.cosmos_simulation import ROWS
from tests.support.stores import batches

async def acknowledged():
    async for batch in batches(ROWS, 100):
        yield batch
        print("next", flush=True)
        sys.stdin.readline()

asyncio.run(publish(connect(sys.argv[1]), acknowledged(), plan=Plan(len(ROWS), 1000), about={}))
"""


@pytest.fixture(params=["file", "redis", "cosmos"])
def url(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, cosmos_http: Account) -> str:
    name = secrets.token_hex(4)
    urls = {"redis": redis_server.url(prefix=name), "cosmos": cosmos_http.url(name, ru="30000")}
    return urls.get(request.param, f"file://{tmp_path}/store")


@contextmanager
def publishing(url: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PUBLISHER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as publisher:
        yield publisher


@pytest.mark.parametrize("acknowledged", [1, *(pytest.param(number, marks=pytest.mark.soak) for number in (12, 29))])
async def test_a_killed_publish_is_continued_where_it_was_acknowledged(url: str, acknowledged: int) -> None:
    store = connect(url)
    live = await publish(store)
    with publishing(url) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        for _ in range(acknowledged):
            assert await asyncio.to_thread(publisher.stdout.readline) == "next\n"
            publisher.stdin.write("go on\n")
            publisher.stdin.flush()
        publisher.send_signal(signal.SIGKILL)
    found = await store.catalogue()
    assert found.live == live
    (draft,) = [entry.id for entry in found.releases if entry.state is State.DRAFT]
    await lapse(store)
    written = await publication.publish(store, batches(ROWS, 70), plan=Plan(len(ROWS), 1000), about={}, resume=draft)
    assert acknowledged * 100 <= written.skipped <= (acknowledged + 1) * 100
    assert written.rows + written.skipped == len(ROWS)
    assert (await store.catalogue()).live == draft
    assert await published_rows(store, draft) == ROWS
    assert await life.prune(store, keep=0, grace_s=0.0) == [live]
    await store.close()
