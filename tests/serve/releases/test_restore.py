"""Stores put back from an older copy, or with a catalogue that is rebuilt, while they are served.

All readers follow what is there, and go on answering.
"""

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hotplate.stores import catalogue as changes
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound
from tests.support.command import hotplate
from tests.support.readers import lists, until
from tests.support.service import Service, publish_to, running, serving


@contextmanager
def requested(service: Service) -> Iterator[list[str]]:
    """Request a list and the readiness time and again until the block ends, none of which may fail; yield releases."""
    over, releases, failures = threading.Event(), list[str](), list[object]()

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


async def until_ready(service: Service, release: str) -> None:
    """Wait until forty requests in a row, which reach every worker, are answered out of *release*, and all is ready."""

    async def is_so() -> bool:
        answers = [(await asyncio.to_thread(service.get, "/v1/recommendations/1")).json for _ in range(40)]
        if {answer.get("release") for answer in answers} != {release}:
            return False
        states = await asyncio.to_thread(service.states)
        return {(state["status"], state.get("release")) for state in states} == {("ready", release)}

    await until(is_so, f"{release} is not served by all")


async def test_workers_follow_a_folder_put_back_from_an_older_copy_and_agree_with_those_that_start_later(
    tmp_path: Path,
) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    first = await publish_to(f"file://{store}", lists("r1"))
    shutil.copytree(store, copy)
    second = await publish_to(f"file://{store}", lists("r2"))
    with running(store, "--workers", "2") as service:
        await until_ready(service, second)
        with requested(service) as releases:
            shutil.rmtree(store)
            shutil.copytree(copy, store)
            await until_ready(service, first)
        assert set(releases) <= {first, second}
        with running(store) as later:
            await until_ready(later, first)
        assert service.log.read_text().count("the store was restored from an older copy") == 2  # once a worker
        third = await publish_to(f"file://{store}", lists("r3"))
        await until_ready(service, third)
    assert '"level":"error"' not in service.log.read_text()


def spoil(path: Path, how: str) -> None:
    match how:
        case "zeros":
            path.write_bytes(bytes(65_536))
        case "cut":
            path.write_bytes(path.read_bytes()[:100])
        case "missing":
            path.unlink()


@pytest.mark.parametrize("how", ["zeros", *(pytest.param(how, marks=pytest.mark.soak) for how in ("cut", "missing"))])
async def test_a_catalogue_that_is_rebuilt_is_followed_by_all_workers_and_no_longer_written_by_earlier_ones(
    tmp_path: Path, how: str
) -> None:
    url = f"file://{tmp_path}/store"
    first, second = [await publish_to(url, lists(text)) for text in ("r1", "r2")]
    writer = connect(url)
    draft = await life.begin(writer, ReleaseId("20991120T064200Z-aaaa"))
    before = await writer.catalogue()
    with serving(tmp_path, "--store", url, "--workers", "2") as service:
        await until_ready(service, second)
        with requested(service) as releases:
            spoil(tmp_path / "store" / "catalogue.json", how)

            async def is_degraded() -> bool:
                states = await asyncio.to_thread(service.states)
                return {state["status"] for state in states} == {"degraded"}

            await until(is_degraded, "not every worker says that its catalogue is lost")
            listed = await asyncio.to_thread(hotplate, "store", "rebuild", "--store", url, "--json")
            assert listed.returncode == 2, listed.stderr
            assert [one["id"] for one in json.loads(listed.stdout)["releases"]] == [first, second]
            assert set(releases) == {second}
            rebuilt = await asyncio.to_thread(hotplate, "store", "rebuild", "--store", url, "--live", first)
            assert rebuilt.returncode == 0, rebuilt.stderr
            await until_ready(service, first)
        assert set(releases) == {first, second}
        with pytest.raises(ReleaseConflict):
            await writer.swap(before, replace(before, generation=before.generation + 1, token="late"))
        with pytest.raises(ReleaseNotFound):
            await life.change(writer, partial(changes.renew, draft=draft))
        await writer.close()
        third = await publish_to(url, lists("r3"))
        await until_ready(service, third)


async def test_a_deleted_folder_is_degraded_and_its_popular_lists_are_served_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    release = await publish_to(f"file://{store}", lists("r1"))
    with running(store, "--workers", "2") as service:
        await until_ready(service, release)
        shutil.rmtree(store)

        async def is_degraded() -> bool:
            states = [(await asyncio.to_thread(service.get, "/readyz")).json["status"] for _ in range(20)]
            return set(states) == {"degraded"}

        await until(is_degraded, "not every worker is degraded, of which no list was requested")
        with requested(service) as releases:
            for _ in range(100):
                await asyncio.to_thread(service.get, "/v1/recommendations/1")
            assert await is_degraded()
        assert set(releases) == {release}

        async def is_told() -> bool:
            details = [str(state["tiers"][0]["detail"]) for state in await asyncio.to_thread(service.states)]
            return all("the catalogue is not in this store" in detail for detail in details)

        await until(is_told, "operators do not read of it for each worker")
        await until_ready(service, await publish_to(f"file://{store}", lists("r2")))
