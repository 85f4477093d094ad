"""Publishing, activating and rolling back under constant load loses not one request."""

import asyncio
from pathlib import Path

import pytest

from bench.loadgen.generator import drive
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from stores.lifecycle import activate, prune, rollback
from stores.lmdb_store import LmdbStore
from tests.support.service import Service, a_list, publish_lists, running

USERS = 50
FLIPS = 8


def lists(mark: str) -> dict[str, bytes]:
    return {f"user:{n}": a_list(f"{mark}-{n}", "b", "c") for n in range(USERS)} | {
        "popular:": a_list(f"{mark}-popular")
    }


def whole(status: int, body: bytes) -> str | None:
    """Judge an answer: a 200 with a list that is not empty and wholly of one release."""
    if status != 200:
        return "status"
    return None if b'"items":[{' in body and body.count(b'"release"') == 1 else "empty"


async def load(service: Service, duration_s: float) -> Result:
    paths = [f"/v1/recommendations/{n}?n=3" for n in range(USERS + 2)]
    return await drive(
        Load(
            url=service.url,
            paths=paths,
            rate=400,
            duration_s=duration_s,
            connections=16,
            check=whole,
            observe=("release", "source"),
        )
    )


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_flips_and_rollbacks_under_load_lose_not_one_request(tmp_path: Path, workers: str) -> None:
    folder = tmp_path / "store"
    seen = [await publish_lists(folder, lists("r0"))]
    store = LmdbStore(folder)
    with running(folder, "--workers", workers) as service:
        loading = asyncio.create_task(load(service, 7.0))
        await asyncio.sleep(0.5)
        for flip in range(1, FLIPS):
            if flip % 3 == 0:
                seen.append(await rollback(store))
            elif flip % 3 == 1:
                seen.append(await publish_lists(folder, lists(f"r{flip}")))
            else:
                seen.append(await publish_lists(folder, lists(f"r{flip}"), live=False))
                await activate(store, (await store.catalogue()).find(seen[-1]).id)  # type: ignore[arg-type]  # an id as text
            await asyncio.sleep(0.6)
            await prune(store, keep=1, grace_s=0)
        result = await loading
        assert service.get("/v1/recommendations/1").json["release"] == seen[-1]
        assert '"level":"error"' not in service.log.read_text()
    await store.close()
    assert (result.errors, result.dropped, result.ok) == ({}, 0, result.due)
    assert set(result.seen["release"]) == set(seen)
    assert set(result.seen["source"]) == {"personal", "popular"}


async def test_a_stop_under_load_loses_no_request_that_was_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    await publish_lists(folder, lists("r0"))
    with running(folder, "--workers", "2") as service:
        loading = asyncio.create_task(load(service, 2.0))
        await asyncio.sleep(0.7)
        assert await asyncio.to_thread(service.stop) == 0
        result = await loading
    answered = {kind for kind in result.errors if kind != "connect"}
    assert not answered, f"requests that were accepted got lost: {result.errors}"
