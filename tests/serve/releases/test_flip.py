"""Publishing, activating and rolling back under constant load loses not one request."""

import asyncio
from pathlib import Path

import pytest

from hotplate.bench.loadgen.generator import drive
from hotplate.bench.loadgen.load import Load
from hotplate.bench.loadgen.result import Result
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import is_empty
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.lifecycle import activate, prune, rollback
from tests.support.readers import USERS, lists, reading, until
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


def complete(status: int, body: bytes) -> str | None:
    """Check an answer: a 200 with a list that is not empty and wholly of one release."""
    if status != 200:
        return "status"
    return None if b'"items":[{' in body and body.count(b'"release"') == 1 else "empty"


@pytest.mark.soak
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_flips_and_rollbacks_under_load_lose_not_one_request(tmp_path: Path, workers: str) -> None:
    folder, results, over = tmp_path / "store", list[Result](), asyncio.Event()
    seen = [await publish_lists(folder, lists("r0"))]
    store = LmdbStore(folder)
    with running(folder, "--workers", workers) as service:
        load = Load(
            url=service.url,
            paths=PATHS,
            rate=400,
            duration_s=1.0,
            connections=32,
            check=complete,
            observe=("release", "source"),
        )

        async def keep_loading() -> None:
            while not over.is_set():
                results.append(await drive(load))

        async def is_served() -> bool:
            answer = await asyncio.to_thread(service.get, "/v1/recommendations/1")
            return bool(answer.json["release"] == seen[-1])

        loading = asyncio.create_task(keep_loading())
        for number in range(1, scaled(6, least=3)):
            seen.append(await flip(folder, store, number))
            await until(is_served, f"{seen[-1]} is not followed")
            await asyncio.sleep(1)  # the other worker follows, too
            await prune(store, keep=1, grace_s=0)
        over.set()
        await loading
        assert '"level":"error"' not in service.log.read_text()
    await store.close()
    assert [(result.errors, result.dropped, result.ok == result.due) for result in results] == [({}, 0, True)] * len(
        results
    )
    assert {release for result in results for release in result.seen["release"]} == set(seen)
    assert {source for result in results for source in result.seen["source"]} == {"personal", "popular"}
