"""A release file that is removed while it is served: said at once, because the next process has nothing to serve."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hotplate.serve.releases.follower import Follower
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import publish
from hotplate.stores.store import Plan, Row, read_one
from tests.support.stores import batches

ROWS = [Row("popular:", b"{}"), Row("user:1", b"{}")]
PLAN = Plan(len(ROWS), 1000)
DEADLINE_S = 10.0


async def becomes(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it holds in time."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + DEADLINE_S
    while not condition() and loop.time() < give_up_at:
        await asyncio.sleep(0.01)
    return condition()


async def test_a_live_file_that_is_removed_is_reported_and_its_lists_are_served_on(tmp_path: Path) -> None:
    store, reader = LmdbStore(tmp_path), LmdbStore(tmp_path)
    await publish(store, batches(ROWS), plan=PLAN, about={})
    follower = Follower(reader)
    following = asyncio.create_task(follower.run())
    await follower.ready.wait()
    assert follower.served is not None
    first = follower.served
    path = tmp_path / "releases" / f"{first.ref.incarnation}.mdb"
    aside = path.rename(tmp_path / "aside")

    assert await becomes(lambda: follower.last_error is not None), "nobody noticed"
    assert f"{path} was removed while release {first.id} is served" in (follower.last_error or "")
    assert await read_one(reader, first.ref, "user:1")
    aside.rename(path)
    assert await becomes(lambda: follower.last_error is None)

    path.unlink()
    assert await becomes(lambda: follower.last_error is not None)
    second = (await publish(store, batches(ROWS), plan=PLAN, about={})).manifest.release
    assert await becomes(lambda: follower.served is not None and follower.served.id == second)
    assert await becomes(lambda: follower.last_error is None)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    for each in (store, reader):
        await each.close()
