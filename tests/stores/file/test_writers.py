"""A draft has one writer: real processes that write, stop, die and go on, and none spoils another's release."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hotplate.stores.catalogue import LEASE_S, Catalogue, DraftRef, ReleaseId, succeed
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound
from hotplate.stores.file.draft import DraftFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.keys import MANIFEST
from hotplate.stores.lifecycle import begin, publish
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import Plan, Row
from hotplate.stores.transfer import copy
from tests.support.clock import FakeClock
from tests.support.stores import as_bodies, batches

ID = ReleaseId("20261120T064200Z-aaaa")
ONE, OTHER = DraftRef(ID, "0123456789ab", "one"), DraftRef(ID, "0123456789ab", "other")
ROWS = [Row(f"user:{n:06}", b"x" * 100) for n in range(20_000)]
PLAN = Plan(len(ROWS), 3_000_000)
DEADLINE_S = 60

WRITER = """
import asyncio, json, sys
from pathlib import Path
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.errors import StoreError
from hotplate.stores.file.draft import DraftFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.keys import MANIFEST
from hotplate.stores.store import Plan, Row

async def main():
    store, draft = LmdbStore(Path(sys.argv[1])), DraftRef(*sys.argv[2:5])
    async def put(first, last, value="x"):
        for start in range(first, last, 1000):
            rows = range(start, min(last, start + 1000))
            await store.put(draft, [Row(f"user:{n:06}", value.encode() * 100) for n in rows])
    steps = {
        "create": lambda: store.create(draft, Plan(20_000, 3_000_000)),
        "put": put,
        "resume_point": lambda: store.resume_point(draft),
        "seal": lambda: store.seal(draft),
    }
    for line in sys.stdin:
        step, *arguments = json.loads(line)
        try:
            print(json.dumps(["ok", await steps[step](*arguments)]), flush=True)
        except StoreError as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)

asyncio.run(main())
"""


class Writer:
    """A process that writes a draft, a step at a time; lives until it is ended."""

    def __init__(self, folder: Path, draft: DraftRef) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), *draft],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *step: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(step) + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[str, Any]:
        assert self.process.stdout is not None
        kind, text = json.loads(self.process.stdout.readline())
        return kind, text

    def do(self, *step: object) -> tuple[str, Any]:
        self.ask(*step)
        return self.answer()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            pass

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[[DraftRef], Writer]]:
    writers = list[Writer]()

    def start_one(draft: DraftRef) -> Writer:
        writers.append(Writer(tmp_path, draft))
        return writers[-1]

    yield start_one
    for writer in writers:
        writer.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "releases").iterdir())


async def complete(folder: Path) -> bool:
    store = LmdbStore(folder)
    await store.check_integrity(ONE.release)
    found = [row async for row in store.scan(ONE.release)]
    await store.close()
    return found == ROWS


async def test_a_late_writer_cannot_write_into_what_another_has_sealed(
    tmp_path: Path, start: Callable[[DraftRef], Writer]
) -> None:
    late, other = start(ONE), start(OTHER)
    assert late.do("create") == ("ok", None)
    assert late.do("put", 0, 10) == ("ok", None)
    for stopped in (False, True):
        if stopped:
            late.stop()
        for step in (("create",), ("resume_point",), ("put", 0, 20_000), ("seal",)):
            kind, text = other.do(*step)
            assert kind == "ReleaseConflict", text
            assert f"is being written by process {late.process.pid}, running or stopped" in text
    late.go_on()
    assert late.do("put", 10, 20_000) == ("ok", None)
    assert late.do("seal") == ("ok", None)
    assert other.do("create")[0] == "ReleaseConflict"
    assert other.do("put", 0, 10, "y")[0] == "ReleaseConflict"
    assert late.do("put", 0, 10, "y")[0] == "ReleaseConflict"
    assert late.do("seal") == ("ok", None)
    assert names(tmp_path) == ["0123456789ab.mdb"]
    assert await complete(tmp_path)


async def test_who_lost_a_draft_finds_it_refused_even_when_nobody_holds_it(tmp_path: Path) -> None:
    for draft in (ONE, OTHER):
        store = LmdbStore(tmp_path)
        await store.create(draft, PLAN)
        await store.close()
    late = LmdbStore(tmp_path)
    for step in (late.put(ONE, ROWS[:1]), late.resume_point(ONE), late.seal(ONE)):
        with pytest.raises(ReleaseConflict, match="which took it over"):
            await step
    assert await late.resume_point(OTHER) is None
    await late.close()


async def test_a_writer_is_succeeded_within_its_own_process(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS[:10])
    await store.create(OTHER, PLAN)
    for step in (store.put(ONE, ROWS[10:]), store.resume_point(ONE), store.seal(ONE)):
        with pytest.raises(ReleaseConflict, match="which took it over"):
            await step
    assert await store.resume_point(OTHER) == ROWS[9].key
    await store.put(OTHER, ROWS[10:])
    await store.seal(OTHER)
    assert await complete(tmp_path)
    await store.close()


@pytest.mark.parametrize("then", [["put", 10, 20], ["resume_point"], ["seal"]])
async def test_a_stopped_writer_whose_draft_was_erased_brings_nothing_back(
    tmp_path: Path, start: Callable[[DraftRef], Writer], then: list[object]
) -> None:
    late = start(ONE)
    assert late.do("create") == ("ok", None)
    assert late.do("put", 0, 10) == ("ok", None)
    late.stop()
    store = LmdbStore(tmp_path)
    assert await store.incarnations() == [ONE.incarnation]
    await store.erase(ONE.release)
    assert names(tmp_path) == []
    late.go_on()
    assert late.do(*then)[0] == "ReleaseNotFound"
    assert late.do("seal")[0] == "ReleaseNotFound"
    assert names(tmp_path) == []
    process = Path(f"/proc/{late.process.pid}")
    held = [*(str(path.readlink()) for path in (process / "fd").iterdir()), *(process / "maps").read_text().split("\n")]
    assert not [name for name in held if "0123456789ab" in name], "it keeps the space of the erased draft"


async def test_a_second_handle_of_one_process_does_not_open_a_draft_twice(tmp_path: Path) -> None:
    one, other = LmdbStore(tmp_path), LmdbStore(tmp_path)
    await one.create(ONE, PLAN)
    with pytest.raises(ReleaseConflict, match=f"process {os.getpid()}"):
        await other.create(OTHER, PLAN)
    with pytest.raises(ReleaseConflict, match=f"process {os.getpid()}"):
        await other.put(ONE, ROWS[:1])
    await one.close()
    await other.create(OTHER, PLAN)
    await other.close()


async def test_a_resume_that_is_refused_leaves_the_draft_to_its_writer(tmp_path: Path, clock: FakeClock) -> None:
    living, other = LmdbStore(tmp_path, clock), LmdbStore(tmp_path, clock)
    waits, goes_on, rows = asyncio.Event(), asyncio.Event(), [Row("popular:", b"{}"), *ROWS[:20]]

    async def slow() -> AsyncIterator[list[Row]]:
        yield as_bodies(rows[:10])
        waits.set()
        await goes_on.wait()
        yield as_bodies(rows[10:])

    publishing = asyncio.ensure_future(publish(living, slow(), plan=PLAN, about={}))
    async with asyncio.timeout(DEADLINE_S):
        await waits.wait()
    clock.now += LEASE_S + 1
    (entry,) = (await other.catalogue()).releases
    with pytest.raises(ReleaseConflict, match=f"is being written by process {os.getpid()}"):
        await publish(other, batches(rows, 10), plan=PLAN, about={}, resume=entry.id)
    source = MemoryStore(clock)
    await publish(source, batches(rows, 10), plan=PLAN, about={}, resume=await begin(source, entry.id))
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(ReleaseConflict, match=f"is being written by process {os.getpid()}"):
            await copy(source, other, entry.id)
    goes_on.set()
    (outcome,) = await asyncio.gather(publishing, return_exceptions=True)
    assert not isinstance(outcome, BaseException), outcome
    assert (await other.catalogue()).live == entry.id
    for store in (living, other):
        await store.close()


async def test_a_draft_from_before_the_machine_started_is_begun_anew(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS[:10])
    await store.close()
    lock, draft = tmp_path / "releases" / "0123456789ab.lock", tmp_path / "releases" / "0123456789ab.draft"
    process, writer, boot = lock.read_text().split()
    assert (process, writer) == (str(os.getpid()), "one")
    lock.write_text(f"{process} {writer} {boot[::-1]}\n")
    draft.write_bytes(draft.read_bytes()[:4096] + bytes(8192))  # what a power cut may leave of what was never flushed
    await store.create(OTHER, PLAN)
    assert await store.resume_point(OTHER) is None
    await store.put(OTHER, ROWS)
    await store.seal(OTHER)
    assert await complete(tmp_path)
    await store.close()


async def test_a_draft_whose_writer_was_killed_as_it_sealed_is_taken_over_without_a_row_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        raise Killed

    store = LmdbStore(tmp_path)
    await store.create(ONE, PLAN)
    await store.put(ONE, [Row(MANIFEST, b"of all rows")])
    await store.put(ONE, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(DraftFile, "_finish", die)
        with pytest.raises(Killed):
            await store.seal(ONE)
    await store.create(OTHER, PLAN)
    assert await store.resume_point(OTHER) == ROWS[-1].key
    await store.close()


async def test_what_was_never_begun_leaves_no_lock_behind(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    (tmp_path / "releases").mkdir()
    with pytest.raises(ReleaseNotFound):
        await store.put(ONE, ROWS[:1])
    assert names(tmp_path) == []


class SlowDisk:
    """Lets no flush end before the event loop has turned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.flush)

    def flush(self, descriptor: int) -> None:
        self.began.set()
        assert self.may_end.wait(DEADLINE_S), "the event loop stood still while the disk was flushed"
        self._fsync(descriptor)

    async def until_it_waits(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not self.began.is_set():
                await asyncio.sleep(0.001)


async def test_the_event_loop_turns_while_a_release_is_sealed_and_a_catalogue_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbStore(tmp_path)
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS)
    first = succeed(Catalogue(), Catalogue(), "token", "here")
    steps: list[Awaitable[None]] = [store.seal(ONE), store.swap(Catalogue(), first)]
    for step in steps:
        with monkeypatch.context() as patch:
            disk = SlowDisk(patch)
            waiting = asyncio.ensure_future(step)
            await disk.until_it_waits()
            assert not waiting.done()
            disk.may_end.set()
            await waiting
    assert (await store.catalogue()) == first
    assert await complete(tmp_path)
    await store.close()


async def test_a_seal_that_is_given_up_leaves_nothing_behind_once_the_draft_is_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbStore(tmp_path)
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS)
    disk = SlowDisk(monkeypatch)
    sealing = asyncio.ensure_future(store.seal(ONE))
    await disk.until_it_waits()
    sealing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sealing
    erasing = asyncio.ensure_future(store.erase(ONE.release))
    await asyncio.sleep(0)
    disk.may_end.set()
    await erasing
    assert names(tmp_path) == []
    with pytest.raises(ReleaseNotFound):
        await store.seal(ONE)
    await store.close()
