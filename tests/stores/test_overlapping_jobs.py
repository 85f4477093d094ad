"""Cron jobs that overlap on one `file://` store, as real processes: each ends well or with a sentence."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import publish
from hotplate.stores.store import Plan, Row
from hotplate.stores.verification import verify
from tests.support.clock import FakeClock
from tests.support.soak import scaled
from tests.support.stores import batches, lapse, published_rows, ref_of

USERS = 20_000
ROWS = [Row("popular:", b"{}"), *(Row(f"user:{n:06}", b"x" * 100) for n in range(USERS))]
PLAN = Plan(len(ROWS), 2_500_000)

JOB = """
import asyncio, json, sys
from pathlib import Path
from hotplate.stores.encoding import body_of
from hotplate.stores.errors import StoreError
from hotplate.stores.lifecycle import publish
from hotplate.stores.transfer import copy
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan, Row

async def batches():
    yield [Row("popular:", body_of(b"{}"))]
    for start in range(0, 20_000, 100):
        yield [Row(f"user:{n:06}", body_of(b"x" * 100)) for n in range(start, start + 100)]
        print(json.dumps(["wrote", start]), flush=True)

async def main(job, store, *arguments):
    store = LmdbStore(Path(store))
    try:
        if job == "copy":
            source, release = arguments
            done = await copy(LmdbStore(Path(source)), store, release)
        else:
            resume = arguments[0] if arguments else None
            done = await publish(store, batches(), plan=Plan(20_001, 2_500_000), about={}, resume=resume)
        print(json.dumps(["done", done.rows, done.skipped]))
    except StoreError as error:
        print(json.dumps([type(error).__name__, str(error)]))

asyncio.run(main(*sys.argv[1:]))
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    jobs = list[subprocess.Popen[str]]()

    def start_one(*arguments: object) -> subprocess.Popen[str]:
        jobs.append(
            subprocess.Popen([sys.executable, "-c", JOB, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
        )
        return jobs[-1]

    yield start_one
    for job in jobs:
        job.kill()
        job.communicate()


async def outcome(job: subprocess.Popen[str]) -> list[object]:
    """Wait for a job's end; return its last line."""
    said, _ = await asyncio.to_thread(job.communicate, timeout=120)
    assert job.returncode == 0, f"it was ended by {-job.returncode}"
    result: list[object] = json.loads(said.splitlines()[-1])
    return result


@pytest.mark.parametrize("rounds", [2, pytest.param(scaled(10), id="soak", marks=pytest.mark.soak)])
async def test_of_two_copies_of_one_release_at_once_one_writes_and_both_end_well(
    tmp_path: Path, start: Start, rounds: int
) -> None:
    source = LmdbStore(tmp_path / "source")
    release = (await publish(source, batches(ROWS, 1000), plan=PLAN, about={})).manifest.release
    for number in range(rounds):
        folder = tmp_path / f"target-{number}"
        jobs = [start("copy", folder, source.folder, release) for _ in range(2)]
        ends = [await outcome(job) for job in jobs]
        assert sorted(ends, key=str) == [["done", 0, len(ROWS)], ["done", len(ROWS), 0]]
        target = LmdbStore(folder)
        assert (await target.catalogue()).live == release
        assert await published_rows(target, release) == ROWS
        assert len(list((folder / "releases").iterdir())) == 1
        await target.close()
    await source.close()


async def test_a_resume_beside_a_publisher_that_is_only_stopped_is_refused_and_names_it_and_that_goes_on(
    tmp_path: Path, start: Start, clock: FakeClock
) -> None:
    store = LmdbStore(tmp_path, clock)
    publisher = start("publish", tmp_path)
    assert publisher.stdout is not None
    while json.loads(publisher.stdout.readline()) != ["wrote", 1000]:
        pass
    publisher.send_signal(signal.SIGSTOP)
    draft = (await store.catalogue()).releases[-1].id
    await lapse(store)
    kind, text = await outcome(start("publish", tmp_path, draft))
    assert kind == "ReleaseConflict"
    assert f"is being written by process {publisher.pid}, running or stopped" in str(text)
    publisher.send_signal(signal.SIGCONT)
    assert (await outcome(publisher))[0] == "done"
    assert (await store.catalogue()).live == draft
    assert await verify(store, await ref_of(store, draft))
    await store.close()
