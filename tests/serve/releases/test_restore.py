"""Releases that change, and stores that are deleted or rebuilt, while they are served."""

import asyncio
import json
import math
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.releases import follower
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.encoding import USER
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound
from hotplate.stores.file.store import LmdbStore
from tests.support.balancer import balanced
from tests.support.command import hotplate, succeeded
from tests.support.readers import WAIT_S, lists, reading
from tests.support.readers import until as wait_until
from tests.support.service import Service, publish_lists, publish_to, published, running, serving, until
from tests.support.soak import scaled
from tests.support.virtual import VirtualLoop, in_virtual_time


@contextmanager
def requested(service: Service) -> Iterator[list[str]]:
    """Request a list and the readiness repeatedly until the block ends, and fail on any error; yield releases."""
    over = threading.Event()
    releases = list[str]()
    failures = list[object]()

    def request() -> None:
        while not over.wait(0.01):
            for path in ("/v1/recommendations/1", "/readyz"):
                answer = service.get(path)
                if answer.status != 200 or (path != "/readyz" and not answer.json["items"]):
                    failures.append((answer.status, answer.body))
                if path != "/readyz":
                    releases.append(answer.json["release"])

    thread = threading.Thread(target=request)
    thread.start()
    try:
        yield releases
    finally:
        over.set()
        thread.join()
    assert not failures, failures[:3]


def until_ready(service: Service, release: str) -> None:
    """Wait until forty requests in a row, which reach every worker, are answered out of *release*, and all is ready."""

    def is_so() -> bool:
        if {(state["status"], state.get("release")) for state in service.states()} != {("ready", release)}:
            return False
        return {service.get("/v1/recommendations/1").json.get("release") for _ in range(40)} == {release}

    until(is_so, f"{release} is not served by all")


async def test_rebuilt_catalogue_is_followed_by_workers_and_rejects_old_writers(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    first, second = [await publish_to(url, lists(text)) for text in ("r1", "r2")]
    writer = connect(url)
    draft = await publication.begin(writer, ReleaseId("20991120T064200Z-aaaa"))
    before = await writer.catalogue()
    with serving(tmp_path, "--store", url, "--workers", "2") as service:
        until_ready(service, second)
        with requested(service) as releases:
            (tmp_path / "store" / "catalogue.json").write_bytes(bytes(65_536))
            until(lambda: {state["status"] for state in service.states()} == {"degraded"}, "a worker sees no loss")
            listed = hotplate("store", "rebuild", "--store", url, "--json")
            assert listed.returncode == 2, listed.stderr
            assert [release["id"] for release in json.loads(listed.stdout)["releases"]] == [first, second]
            assert set(releases) == {second}
            succeeded("store", "rebuild", "--store", url, "--live", first)
            until_ready(service, first)
        assert set(releases) == {first, second}
        with pytest.raises(ReleaseConflict):
            await writer.swap(before, replace(before, generation=before.generation + 1, token="late"))
        with pytest.raises(ReleaseNotFound):
            await life.update_catalogue(writer, partial(changes.renew, draft=draft))
        await writer.close()
        third = await publish_to(url, lists("r3"))
        until_ready(service, third)


async def test_deleted_folder_is_degraded_and_popular_lists_are_served(tmp_path: Path) -> None:
    store = tmp_path / "store"
    release = await publish_to(f"file://{store}", lists("r1"))
    with running(store, "--workers", "2") as service:
        until_ready(service, release)
        shutil.rmtree(store)

        def statuses() -> set[str]:
            return {state["status"] for state in service.states()}

        until(lambda: statuses() == {"degraded"}, "not every worker is degraded, of which no list was requested")
        with requested(service) as releases:
            for _ in range(100):
                service.get("/v1/recommendations/1")
            assert service.status == "degraded"
            assert statuses() == {"degraded"}
        assert set(releases) == {release}
        told = "the catalogue is not in this store"
        until(lambda: all(told in str(state["tiers"][0]["detail"]) for state in service.states()), "nobody is told")
        until_ready(service, await publish_to(f"file://{store}", lists("r2")))


def test_warming_beside_a_served_release_pauses(tmp_path: Path) -> None:
    for mark in ("r0", "r1"):
        published(tmp_path, lists(mark))

    async def warm(loop: VirtualLoop) -> list[float]:
        store = LmdbStore(tmp_path)
        ended_at = [loop.time()]
        for entry in (await store.catalogue()).releases:
            await store.warm(entry.ref)
            ended_at.append(loop.time())
        await store.close()
        return ended_at

    began, alone, beside = in_virtual_time(warm)
    assert alone == began
    assert beside > alone


async def prune_served(folder: Path, store: LmdbStore) -> str:
    """Publish twice, and prune what the reader of the first release still serves; return the live one."""
    await publish_lists(folder, lists("r1"))
    live = await publish_lists(folder, lists("r2"))
    assert len(await life.prune(store, keep=1, grace_s=0)) == 1
    return live


async def rewrite(folder: Path, store: LmdbStore) -> str:
    """Replace the store by another one; return its live release."""
    del store
    shutil.rmtree(folder)
    return await publish_lists(folder, lists("r1"))


@pytest.mark.parametrize("change", [prune_served, rewrite])
async def test_removed_release_is_served_until_the_next_one_is_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, LmdbStore], Awaitable[str]]
) -> None:
    folder = tmp_path / "store"
    first = await publish_lists(folder, lists("r0"))
    store = LmdbStore(folder)
    warming = list[str]()
    may_end = asyncio.Event()
    warm = LmdbStore.warm

    async def warm_for_long(self: LmdbStore, release: ReleaseRef) -> None:
        await warm(self, release)
        warming.append(release.id)
        await may_end.wait()

    async with TieredReader(tiers_of([f"file://{folder}"]), warm=True) as reader:

        async def answer() -> tuple[str, str]:
            answer = await reader.read(USER, "1")
            assert answer.release is not None
            return answer.source, answer.release.id

        await reader.wait_until_ready(WAIT_S)
        monkeypatch.setattr(LmdbStore, "warm", warm_for_long)
        live = await change(folder, store)
        await wait_until(lambda: asyncio.sleep(0, live in warming), "it is not warmed")
        await reader.tiers[0].reader.catalogue()  # without the first release
        assert await answer() == ("personal", first)
        may_end.set()

        async def is_followed() -> bool:
            maps = Path("/proc/self/maps").read_text().splitlines()
            of_store = [line for line in maps if f"{folder}/releases" in line]
            removed = [line for line in of_store if line.endswith("(deleted)")]
            return await answer() == ("personal", live) and of_store != [] and removed == []

        await wait_until(is_followed, "the next release is not served, or the removed one is still mapped")
    await store.close()


async def test_folder_copied_back_without_the_served_release_is_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    first = await publish_lists(folder, lists("r0"))
    shutil.copytree(folder, tmp_path / "copy")
    second = await publish_lists(folder, lists("r1"))
    monkeypatch.setattr(follower, "RESTORED_S", math.inf)
    async with reading(f"file://{folder}") as reader:

        async def is_served(release: str) -> bool:
            answer = await reader.read(USER, "1")
            return answer.release is not None and answer.release.id == release

        await wait_until(lambda: is_served(second), "the second release is not served")
        shutil.rmtree(folder)
        (tmp_path / "copy").rename(folder)
        await wait_until(lambda: is_served(first), "the copy is not followed")


async def flip(folder: Path, store: LmdbStore, number: int) -> str:
    """Change the live release, by a publish, an activation or a rollback; return it."""
    if number % 3 == 0:
        return await life.rollback(store)
    release = await publish_lists(folder, lists(f"r{number}"), live=number % 3 == 1)
    if number % 3 == 2:
        await life.activate(store, ReleaseId(release))
    return release


def release_in(status: int, body: bytes) -> str:
    """Return the release of an answer with a list that is not empty and all of one release."""
    if status != 200 or b'"items":[{' not in body or body.count(b'"release"') != 1:
        return f"{status} {body!r}"
    return str(json.loads(body)["release"])


@pytest.mark.soak
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_flips_and_rollbacks_under_load_lose_no_request(tmp_path: Path, workers: str) -> None:
    folder = tmp_path / "store"
    seen = [await publish_lists(folder, lists("r0"))]
    store = LmdbStore(folder)
    with (
        running(folder, "--workers", workers) as service,
        balanced(service.port, path="/v1/recommendations/1", outcome=release_in) as personal,
        balanced(service.port, path="/v1/recommendations/nobody", outcome=release_in) as popular,
    ):

        def is_served() -> bool:
            """Whether all workers follow the last release, and both balancers have got answers out of it."""
            followed = {state["release"] for state in service.states()}
            return followed == {seen[-1]} and all(each.outcomes[seen[-1]] for each in (personal, popular))

        for number in range(1, scaled(6, least=3)):
            seen.append(await flip(folder, store, number))
            until(is_served, "it is not followed")
            await life.prune(store, keep=1, grace_s=0)
        assert '"level":"error"' not in service.log.read_text()
    await store.close()
    assert set(personal.outcomes) == set(popular.outcomes) == set(seen)
