"""When a worker is ready, degraded or not ready, and why."""

from pathlib import Path

from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.processes.readiness import Status, WorkerReadiness
from tests.support.memory_store import MemoryStore
from tests.support.remote import RemoteStore, publish


async def test_worker_with_one_of_two_stores_is_degraded(memory: MemoryStore) -> None:
    reader = TieredReader({"first": memory, "second": MemoryStore()})
    readiness = WorkerReadiness(reader)
    assert readiness.check().status is Status.NOT_READY
    await publish(memory, "first")
    await reader.tiers[0].follower.refresh()
    assert readiness.check().status is Status.DEGRADED


async def test_kept_popular_lists_make_a_worker_without_a_release_degraded(memory: MemoryStore) -> None:
    await publish(memory, "first")
    before = TieredReader({"memory": memory})
    await before.tiers[0].follower.refresh()
    assert before.first_live is not None
    kept = {"memory": before.first_live.release}
    reader = TieredReader({"memory": RemoteStore(MemoryStore())}, kept=kept)
    readiness = WorkerReadiness(reader)
    assert readiness.check().status is Status.DEGRADED


async def test_unreadable_file_degrades_a_ready_worker_until_it_drains(memory: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "denied"
    path.write_text("")
    await publish(memory, "first")
    reader = TieredReader({"memory": memory}, deny_list=DenyListFile(path))
    await reader.tiers[0].follower.refresh()
    readiness = WorkerReadiness(reader, watched=reader.deny_list.watched)
    assert readiness.check() == (Status.READY, [])

    path.write_text("neither a user nor an item\n")
    for _ in range(2):
        reader.deny_list.watched[0].poll()
    status, (finding,) = readiness.check()
    assert status is Status.DEGRADED
    assert (finding.source, finding.is_error) == ("file", False)
    assert str(path) in finding.sentence

    readiness.drain()
    assert readiness.check() == (Status.DRAINING, [finding])
