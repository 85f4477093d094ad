"""Publishers and erasures that are killed: acknowledged work counts, and is not repeated."""

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import State
from hotplate.stores.connect import connect
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.store import Plan, Row
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.soak import SEED, in_soak, scaled
from tests.support.stores import LISTS, allow_erasure, batches, lapse, publish, published_rows, ref_of

pytestmark = pytest.mark.usefixtures("patience")

# Publishes the batches that it reads, and says when each is acknowledged; modules of tests would take longer to load.
PUBLISHER = """
import asyncio, json, sys
from hotplate.stores.connect import connect
from hotplate.stores.encoding import body_of
from hotplate.stores.publication import publish_release
from hotplate.stores.store import Plan, Row

async def batches():
    while line := sys.stdin.readline():
        yield [Row(key, body_of(value.encode())) for key, value in json.loads(line)]
        print("acknowledged", flush=True)

asyncio.run(publish_release(connect(sys.argv[1]), batches(), plan=Plan(int(sys.argv[2]), 1000)))
"""
BATCH = 100


# Erases users one after the other, two at a time, for each line that it reads.
ERASER = """
import asyncio, sys
from hotplate.stores.connect import connect
from hotplate.stores.users import erase_users

async def erase():
    store = connect(sys.argv[1])
    for number in range(0, 200, 2):
        sys.stdin.readline()
        print(number, flush=True)
        await erase_users(store, [str(number), str(number + 1)])

asyncio.run(erase())
"""


@contextmanager
def started(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as publisher:
        yield publisher


@pytest.mark.parametrize("acknowledged", [1, *(in_soak(number) for number in (12, 29))])
async def test_killed_publish_continues_after_acknowledged_rows(url: str, acknowledged: int) -> None:
    rows = [LISTS[0], *(Row(f"user:{number:05}", b"%d" % number) for number in range(BATCH * (acknowledged + 2)))]
    plan = Plan(len(rows), 1000)
    store = connect(url)
    live = await publish(store)
    with started(PUBLISHER, url, str(len(rows))) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        for start in range(0, BATCH * (acknowledged + 1), BATCH):
            if start:
                assert await asyncio.to_thread(publisher.stdout.readline) == "acknowledged\n"
            batch = [(row.key, row.value.decode()) for row in rows[start : start + BATCH]]
            publisher.stdin.write(f"{json.dumps(batch)}\n")
            publisher.stdin.flush()
        publisher.send_signal(signal.SIGKILL)
    catalogue = await store.catalogue()
    assert catalogue.live == live
    (draft,) = [entry.id for entry in catalogue.releases if entry.state is State.DRAFT]
    await lapse(store)
    resumed = await publication.take_over(store, draft)
    written = await publication.publish_release(store, batches(rows, 70), plan=plan, draft=resumed)
    assert acknowledged * BATCH <= written.skipped <= (acknowledged + 1) * BATCH
    assert written.rows + written.skipped == len(rows)
    assert (await store.catalogue()).live == draft
    assert await published_rows(store, draft) == rows
    assert await life.prune(store, keep=0, grace_s=0.0) == [live]
    await store.close()


async def killed_erasure(url: str, steps: int, kill_after_s: float) -> set[str]:
    """Kill an eraser in or after this many of its steps; return the users that it had erased for certain."""
    with started(ERASER, url) as eraser:
        assert eraser.stdin is not None
        assert eraser.stdout is not None
        eraser.stdin.write("\n" * steps)  # no more, however late it is killed
        eraser.stdin.flush()
        reached = 0
        for _ in range(steps):
            reached = int(await asyncio.to_thread(eraser.stdout.readline))
        await asyncio.sleep(kill_after_s)
        eraser.send_signal(signal.SIGKILL)
    return {str(number) for number in range(reached)}


@pytest.mark.parametrize("kills", [2, in_soak(scaled(30))])
async def test_killed_erasure_keeps_exact_counts_and_is_finished(url: str, kills: int) -> None:
    store = connect(url)
    users = [Row(f"user:{number}", b'{"id":"a"}') for number in range(200)]
    releases = [await ref_of(store, await publish(store, [*LISTS[:1], *users])) for _ in range(2)]
    erased = set[str]()
    draw = random.Random(SEED)
    for _ in range(kills):
        erased |= await killed_erasure(url, draw.randint(1, 8), draw.uniform(0, 0.05))
        known = await erased_from(store)
        assert all(known.covers(f"user:{user}") for user in erased)
        for release in releases:
            await verify(store, release)
    last = [str(number) for number in range(len(erased) + 4)]
    done = await erase_users(store, last)
    assert set(done.erased) == set(last)
    for release in releases:
        await verify(store, release)
    if store.erases_rows:
        assert done.holding == {}
        await store.erase_rows(releases[0], ["user:197", "user:198", "user:199"], allow_erasure)
        with pytest.raises(ReleaseCorrupt, match=r" 3 of 202 rows are missing"):
            await verify(store, releases[0])
    await store.close()
