"""Reading what is served in the background: at its rate, over and over; damage is said before anybody requests it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotplate.serve.embedded import Lists
from hotplate.serve.reader import TieredReader
from hotplate.serve.scrubber import PAUSE_S, Scrubber
from hotplate.stores import lifecycle as life
from hotplate.stores.memory import MemoryStore
from tests.support.limited_service import counted
from tests.support.redis_server import RedisServer, users_of_the_guide
from tests.support.remote import RemoteStore, publish
from tests.support.service import a_list, publish_lists, publish_to, running, serving, until
from tests.support.virtual import virtual

ROWS_PER_S = 10.0


def found(reader: TieredReader, name: str) -> float | None:
    """Return the one value of a metric, where it is there."""
    families = text_string_to_metric_families(Lists(reader).prometheus_text().decode())
    return next((sample.value for family in families for sample in family.samples if sample.name == name), None)


@asynccontextmanager
async def scrubbed(memory: MemoryStore) -> AsyncIterator[TieredReader]:
    """Read a store as if it were far away, and scrub it, until the block ends."""
    async with TieredReader({"far": RemoteStore(memory)}) as reader:
        await reader.wait_until_ready(10)
        task = asyncio.create_task(Scrubber(reader.tiers, {"far": memory}, reader.metrics, ROWS_PER_S).run())
        yield reader
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def flip(memory: MemoryStore, key: str) -> None:
    """Flip one bit of a value in every release."""
    for release in memory._releases.values():
        release.rows[key] = release.rows[key][:-1] + bytes([release.rows[key][-1] ^ 1])


@virtual
async def test_rows_are_read_at_the_rate_and_damage_is_said_before_anybody_requests_it(memory: MemoryStore) -> None:
    await publish(memory, "first", users=range(100))
    async with scrubbed(memory) as reader:
        assert found(reader, "hotplate_scrub_rows_total") is None or found(reader, "hotplate_scrub_rows_total") == 0
        await asyncio.sleep(5)
        rows = found(reader, "hotplate_scrub_rows_total")
        assert rows is not None
        assert 5 * ROWS_PER_S - 1 <= rows <= 5 * ROWS_PER_S + 1
        assert reader.tiers[0].error is None
        flip(memory, "user:99")
        await asyncio.sleep(20)  # a pass takes 10 s, and the one that runs has seen what was there when it began
        assert found(reader, "hotplate_scrub_damaged") == 1
        assert "user:99" in str(reader.tiers[0].error)
        assert found(reader, "hotplate_store_corrupt_total") == 0


@virtual
async def test_a_canary_is_read_too_and_the_damage_of_both_is_counted(memory: MemoryStore) -> None:
    await publish(memory, "live", users=range(10))
    canary = await publish(memory, "canary", live=False, users=range(10))
    await life.start_canary(memory, canary, 50)
    flip(memory, "user:7")
    async with scrubbed(memory) as reader:
        await asyncio.sleep(20)
        assert found(reader, "hotplate_scrub_damaged") == 2
        await life.abort(memory)
        await asyncio.sleep(20)
        assert found(reader, "hotplate_scrub_damaged") == 1


@virtual
async def test_rows_that_are_missing_are_said_as_damage_is(memory: MemoryStore) -> None:
    await publish(memory, "first", users=range(20))
    async with scrubbed(memory) as reader:
        for release in memory._releases.values():
            for user in range(10, 15):
                del release.rows[f"user:{user}"]
        await asyncio.sleep(10)
        assert found(reader, "hotplate_scrub_damaged") == 5
        assert "5 of 22 rows are missing" in str(reader.tiers[0].error)


@virtual
async def test_a_release_that_is_not_served_any_more_is_not_read_to_its_end_and_the_next_one_is(
    memory: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(memory, "first", users=range(1000))
    flip(memory, "user:900")
    async with scrubbed(memory) as reader:
        await asyncio.sleep(5)
        await publish(memory, "second", users=range(10))
        await asyncio.sleep(5 + 3 * PAUSE_S)
        assert found(reader, "hotplate_scrub_damaged") == 0
        assert (found(reader, "hotplate_scrub_pass_seconds") or 0) + 1 >= 1
        assert reader.tiers[0].error is None
    assert "ERROR" not in {record.levelname for record in caplog.records}


@virtual
async def test_whatever_a_store_raises_scrubbing_goes_on(memory: MemoryStore) -> None:
    await publish(memory, "first", users=range(10))
    async with scrubbed(memory) as reader:
        releases, memory._releases = memory._releases, {}
        await asyncio.sleep(5)
        memory._releases = None  # type: ignore[assignment]  # a defect
        await asyncio.sleep(5)
        memory._releases = releases
        await asyncio.sleep(5)
        assert (found(reader, "hotplate_scrub_rows_total") or 0) > 10


def test_a_flipped_bit_in_a_file_is_found_in_the_background_and_degrades_its_worker(tmp_path: Path) -> None:
    store = tmp_path / "store"
    release = asyncio.run(publish_lists(store, {f"user:{n}": a_list(f"item-of-{n}") for n in range(50)}))
    with running(store, "--scrub-rate", "1000", "--workers", "2") as service:
        until(lambda: counted(service, "hotplate_scrub_rows_total") >= 100, "nothing is read")
        (path,) = (store / "releases").glob("*.mdb")
        at = path.read_bytes().index(b'item-of-7"')
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"I")
        until(lambda: counted(service, "hotplate_scrub_damaged") >= 1, "the damage is not found")
        answers = [service.get(f"/v1/recommendations/{n}").json for n in range(50)]
        assert [n for n, answer in enumerate(answers) if answer["source"] == "popular"] == [7]
        assert {answer["release"] for answer in answers} == {release}
        assert "user:7" in service.log.read_text()
        assert service.stop() == 0


def test_the_guides_redis_user_for_a_service_may_scrub(tmp_path: Path, redis_server: RedisServer) -> None:
    urls = users_of_the_guide("scrubbed", redis_server.execute_command, redis_server.url)
    asyncio.run(publish_to(urls["publish"], {f"user:{n}": a_list("a") for n in range(50)}))
    with serving(tmp_path, "--store", urls["serve"], "--scrub-rate", "1000") as service:
        until(lambda: counted(service, "hotplate_scrub_rows_total") >= 100, "nothing is read")
        assert counted(service, "hotplate_scrub_damaged") == 0
        assert "not scrubbed" not in service.log.read_text()
