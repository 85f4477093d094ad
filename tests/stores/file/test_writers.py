"""A draft has one writer: real processes that write, stop, die and go on, and none spoils another's release."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan, Row
from hotplate.stores.transitions import succeed
from tests.support.stores import allow_erasure, lists_of
from tests.support.waiting import until_true

ID = ReleaseId("20261120T064200Z-aaaa")
ONE = DraftRef(ID, "0123456789ab", "one")
OTHER = DraftRef(ID, "0123456789ab", "other")
ROWS = lists_of(20_000, b"x" * 100)
PLAN = Plan(len(ROWS), 3_000_000)
DEADLINE_S = 60

# Writes ten rows, and the others once it is told to.
WRITER = """
import asyncio, sys
from pathlib import Path
from hotplate.stores.catalogue import DraftRef
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan, Row

async def main():
    store, draft = LmdbStore(Path(sys.argv[1])), DraftRef(*sys.argv[2:])
    rows = [Row(f"user:{n:06}", b"x" * 100) for n in range(20_000)]
    await store.create(draft, Plan(len(rows), 3_000_000))
    await store.put(draft, rows[:10])
    print("wrote", flush=True)
    sys.stdin.readline()
    await store.put(draft, rows[10:])
    await store.seal(draft)

asyncio.run(main())
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "releases").iterdir())


async def is_complete(store: LmdbStore) -> bool:
    await store.check_integrity(ONE.release)
    return [row async for row in store.scan(ONE.release)] == ROWS


async def test_late_writer_cannot_write_into_a_sealed_release(store: LmdbStore) -> None:
    command = [sys.executable, "-c", WRITER, str(store.folder), *ONE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as late:  # noqa: ASYNC220 -- nothing waits
        assert late.stdout is not None
        assert late.stdout.readline() == b"wrote\n"
        for stopped in (False, True):
            if stopped:
                late.send_signal(signal.SIGSTOP)
                while Path(f"/proc/{late.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                    pass
            with pytest.raises(ReleaseConflict, match=f"written by process {late.pid}, running or stopped"):
                await store.create(OTHER, PLAN)
            for step in (store.resume_point(OTHER), store.put(OTHER, ROWS), store.seal(OTHER)):
                with pytest.raises(ReleaseConflict):
                    await step
        late.send_signal(signal.SIGCONT)
        late.communicate(b"go on\n")
        assert late.returncode == 0
    for step in (store.create(OTHER, PLAN), store.put(OTHER, [Row(ROWS[0].key, b"y")]), store.put(ONE, ROWS[:1])):
        with pytest.raises(ReleaseConflict):
            await step
    await store.seal(ONE)
    assert names(store.folder) == ["0123456789ab.mdb"]
    assert await is_complete(store)


@pytest.mark.parametrize("then", ["put", "resume_point", "seal"])
async def test_writer_of_an_erased_draft_recreates_nothing(store: LmdbStore, then: str) -> None:
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS[:10])
    other = LmdbStore(store.folder)
    assert await other.incarnations() == [ONE.incarnation]
    await other.erase(ONE.release, allow_erasure)
    assert names(store.folder) == []
    rows = [ROWS[10:20]] if then == "put" else []
    for step in (getattr(store, then)(ONE, *rows), store.seal(ONE)):
        with pytest.raises(ReleaseNotFound):
            await step
    assert names(store.folder) == []
    held = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    seen = [*map(str, held), *Path("/proc/self/maps").read_text().split("\n")]
    assert not [name for name in seen if f"{store.folder}/" in name and "0123456789ab" in name], "it keeps the space"


async def test_draft_from_before_a_reboot_is_started_again(store: LmdbStore) -> None:
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS[:10])
    await store.close()
    lock = store.folder / "releases" / "0123456789ab.lock"
    draft = store.folder / "releases" / "0123456789ab.draft"
    process, boot = lock.read_text().split()
    assert process == str(os.getpid())
    lock.write_text(f"{process} {boot[::-1]}\n")
    draft.write_bytes(draft.read_bytes()[:4096] + bytes(8192))  # a power cut may lose unflushed pages
    await store.create(OTHER, PLAN)
    assert await store.resume_point(OTHER) is None
    await store.put(OTHER, ROWS)
    await store.seal(OTHER)
    assert await is_complete(store)


class SlowDisk:
    """Lets no flush end before the event loop has turned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.flush)

    def flush(self, descriptor: int) -> None:
        self.began.set()
        assert self.may_end.wait(DEADLINE_S), "the event loop stood still while the disk was flushed"
        self._fsync(descriptor)

    async def until_it_waits(self) -> None:
        await until_true(self.began.is_set)


async def test_event_loop_is_not_blocked_by_a_seal_or_a_catalogue_swap(
    store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create(ONE, PLAN)
    await store.put(ONE, ROWS)
    first = succeed(Catalogue(), Catalogue(), "token", "here")
    for step in (store.seal(ONE), store.swap(Catalogue(), first)):
        with monkeypatch.context() as patch:
            disk = SlowDisk(patch)
            waiting = asyncio.ensure_future(step)
            await disk.until_it_waits()
            assert not waiting.done()
            disk.may_end.set()
            await waiting
    assert (await store.catalogue()) == first
    assert await is_complete(store)
