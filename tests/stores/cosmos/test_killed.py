"""A publisher to Cosmos DB killed in the middle: what was acknowledged is not written again, and nobody saw a thing."""

import secrets
import signal
import subprocess
import sys

import pytest

from hotplate.stores import publication
from hotplate.stores.catalogue import State
from hotplate.stores.connect import connect
from hotplate.stores.store import Plan
from tests.support.cosmos_account import Account, Counted
from tests.support.cosmos_simulation import ROWS, batches
from tests.support.stores import lapse, ref_of

PUBLISHER = """
import asyncio, sys
from hotplate.stores.connect import connect
from hotplate.stores.publication import publish
from hotplate.stores.store import Plan
from tests.support.cosmos_simulation import ROWS, batches

async def acknowledged():
    async for batch in batches(ROWS, 100):
        yield batch
        print("next", flush=True)
        sys.stdin.readline()

async def main():
    await publish(connect(sys.argv[1]), acknowledged(), plan=Plan(len(ROWS), 1000), about={})

asyncio.run(main())
"""


def started(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("acknowledged", [1, *(pytest.param(number, marks=pytest.mark.soak) for number in (0, 12, 29))])
async def test_a_killed_publish_is_continued_where_it_was_acknowledged(cosmos_http: Account, acknowledged: int) -> None:
    url = cosmos_http.url(f"killed{secrets.token_hex(4)}", ru="30000")
    store = connect(url)
    live = ((await publication.publish(store, batches(ROWS[:50]), plan=Plan(50, 1000), about={})).manifest).release
    with started(url) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        for _ in range(acknowledged):
            assert publisher.stdout.readline() == "next\n"
            publisher.stdin.write("go on\n")
            publisher.stdin.flush()
        while not acknowledged and len((await store.catalogue()).releases) < 2:
            assert publisher.poll() is None
        publisher.send_signal(signal.SIGKILL)
    found = await store.catalogue()
    assert found.live == live
    (draft,) = [entry.id for entry in found.releases if entry.state is State.DRAFT]
    await lapse(store)
    await store.close()
    observer = Counted()
    store = connect(url, observer)
    await lapse(store)
    written = await publication.publish(store, batches(ROWS, 70), plan=Plan(len(ROWS), 1000), about={}, resume=draft)
    assert acknowledged * 100 <= written.skipped <= (acknowledged + 1) * 100
    assert written.rows + written.skipped == len(ROWS)
    assert observer.ru < 7 * written.rows + 1.1 * len(ROWS) + 10 * 100 + 200, "rows were written twice"
    assert (await store.catalogue()).live == draft
    assert [row.key async for row in store.scan(await ref_of(store, draft)) if not row.key.startswith("meta:")] == [
        row.key for row in ROWS
    ]
    await store.close()
