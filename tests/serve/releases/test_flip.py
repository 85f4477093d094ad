"""Publishing, activating and rolling back under constant load loses not one request."""

import asyncio
from pathlib import Path

import pytest

from bench.loadgen.generator import drive
from bench.loadgen.load import Load
from stores.catalogue import ReleaseId
from stores.encoding import is_empty
from stores.file.store import LmdbStore
from stores.lifecycle import activate, prune, rollback
from tests.support.loaded_service import USERS, complete, lists, reading, under_load, until
from tests.support.service import publish_lists, running
from tests.support.soak import scaled

PATHS = tuple(f"/v1/recommendations/{n}?n=3" for n in range(USERS + 2))


async def flip(folder: Path, store: LmdbStore, number: int) -> str:
    """Change the live release, by a publish, an activation or a rollback in turn; return it."""
    if number % 3 == 0:
        return await rollback(store)
    release = await publish_lists(folder, lists(f"r{number}"), live=number % 3 == 1)
    if number % 3 == 2:
        await activate(store, ReleaseId(release))
    return release


async def test_readers_follow_every_flip_and_no_answer_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await publish_lists(folder, lists("r0"))
    async with reading(f"file://{folder}") as reader:
        store = LmdbStore(folder)
        for number in range(1, 5):
            release = await flip(folder, store, number)

            async def is_followed(release: str = release) -> bool:
                answer = await reader.personal("1")
                assert (answer.source, not is_empty(answer.body)) == ("personal", True)
                return answer.served.id == release

            await until(is_followed, f"{release} is not followed")
            await prune(store, keep=1, grace_s=0)
        await store.close()


@pytest.mark.soak
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_flips_and_rollbacks_under_load_lose_not_one_request(tmp_path: Path, workers: str) -> None:
    folder = tmp_path / "store"
    seen = [await publish_lists(folder, lists("r0"))]
    store = LmdbStore(folder)
    async with under_load(tmp_path, f"file://{folder}", paths=PATHS, rate=400, options=("--workers", workers)) as run:
        for number in range(1, scaled(6, least=3)):
            seen.append(await flip(folder, store, number))
            await run.until_release(seen[-1])
            await run.windows(1)  # the other worker follows, too
            await prune(store, keep=1, grace_s=0)
    await store.close()
    run.answered("file", source="popular")
    assert run.logged('"level":"error"') == 0
    assert set(run.seen("release")) == set(seen)
    assert set(run.seen("source")) == {"personal", "popular"}


@pytest.mark.soak
async def test_a_stop_under_load_loses_no_request_that_was_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await publish_lists(folder, lists("r0"))
    for _ in range(scaled(1)):
        with running(folder, "--workers", "2") as service:
            load = Load(url=service.url, paths=PATHS, rate=400, duration_s=2.0, connections=16, check=complete)
            loading = asyncio.create_task(drive(load))
            await asyncio.sleep(0.7)
            assert await asyncio.to_thread(service.stop) == 0
            result = await loading
        answered = {kind for kind in result.errors if kind != "connect"}
        assert not answered, f"requests that were accepted got lost: {result.errors}"
