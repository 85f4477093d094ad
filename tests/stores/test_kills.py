"""A publisher killed at any instant changes nothing that readers see, and the next `prune` cleans up."""

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stores.catalogue import LEASE_S, State
from stores.lifecycle import prune, publish
from stores.lmdb_store import LmdbStore
from stores.store import Plan, Row
from stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.soak import SEED, scaled
from tests.support.stores import batches, ref

PUBLISHER = """
import asyncio, sys
from pathlib import Path
from stores.lmdb_store import LmdbStore
from stores.lifecycle import publish
from stores.store import Plan, Row

async def batches():
    yield [Row("popular:", b"{}")]
    for start in range(0, 30_000, 500):
        yield [Row(f"user:{n:06}", b"new" * 50) for n in range(start, start + 500)]

async def main():
    store = LmdbStore(Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.readline()
    await publish(store, batches(), plan=Plan(30_001, 5_000_000), about={}, live=False)
    print("done", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


def start(folder: Path) -> subprocess.Popen[str]:
    publisher = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert publisher.stdout is not None
    assert publisher.stdout.readline() == "ready\n"
    return publisher


def go(publisher: subprocess.Popen[str]) -> None:
    assert publisher.stdin is not None
    publisher.stdin.write("go\n")
    publisher.stdin.flush()


def reap(publisher: subprocess.Popen[str]) -> None:
    publisher.send_signal(signal.SIGKILL)
    publisher.communicate()


async def test_a_publisher_killed_at_a_few_instants_changes_nothing(tmp_path: Path) -> None:
    await kill_publishers(tmp_path, kills=4)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_publisher_killed_at_50_instants_changes_nothing(tmp_path: Path) -> None:
    kills = scaled(50, least=10)
    assert await kill_publishers(tmp_path, kills) > kills // 4, "the kills missed the publish"


async def kill_publishers(tmp_path: Path, kills: int) -> int:
    """Kill publishers at random instants, looking after each; return how many left a draft behind."""
    store = LmdbStore(tmp_path, lambda: time.time() + LEASE_S + 1)  # to this handle every lease has lapsed
    rows = [Row("popular:", b"{}"), Row("user:000001", b"old")]
    live = ((await publish(LmdbStore(tmp_path), batches(rows), plan=Plan(2, 100), about={})).manifest).release

    unharmed = start(tmp_path)
    began = time.monotonic()
    go(unharmed)
    assert unharmed.stdout is not None
    assert unharmed.stdout.readline() == "done\n"
    takes_s = time.monotonic() - began
    reap(unharmed)

    draw, left_drafts = random.Random(SEED), 0
    publisher = start(tmp_path)
    for _ in range(kills):
        upcoming = start(tmp_path)
        go(publisher)
        await asyncio.sleep(draw.uniform(0, takes_s))
        reap(publisher)
        publisher = upcoming
        reader = LmdbStore(tmp_path)
        found = await reader.catalogue()
        assert found.live == live
        assert await reader.get_many(ref(live), ["user:000001"]) == [b"old"]
        await verify(reader, ref(live))
        await reader.close()
        left_drafts += any(entry.state is State.DRAFT for entry in found.releases)
        await prune(store)
        assert State.DRAFT not in {entry.state for entry in (await store.catalogue()).releases}
        kept = {f"{entry.id}.mdb" for entry in (await store.catalogue()).releases}
        assert {path.name for path in (tmp_path / "releases").iterdir()} == kept
    reap(publisher)
    await verify(store, ref(live))
    await store.close()
    return left_drafts


async def test_a_paused_publisher_whose_draft_was_dropped_commits_nothing(tmp_path: Path, clock: FakeClock) -> None:
    store = LmdbStore(tmp_path, clock)
    publisher = start(tmp_path)
    go(publisher)
    while not list(tmp_path.glob("releases/*.draft")):
        assert publisher.poll() is None
        await asyncio.sleep(0.001)
    publisher.send_signal(signal.SIGSTOP)
    clock.now = time.time() + LEASE_S + 1
    await prune(store)
    publisher.send_signal(signal.SIGCONT)
    _, _ = publisher.communicate("", timeout=60)
    assert publisher.returncode != 0
    assert (await store.catalogue()).releases == ()
    await store.close()
