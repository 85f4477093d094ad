"""Comparing with a Cosmos store: its emulator's metrics, throttled reads, and its column in the table."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hotplate.bench.lists import Shape
from hotplate.bench.stores.rounds import look_up
from hotplate.bench.stores.server import store_server
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.publication import publish
from hotplate.stores.store import Row
from tests.support.command import hotplate
from tests.support.cosmos_account import emulated_account
from tests.support.redis_server import RedisServer

SMALL = ("--duration", "0.4s", "--warmup", "0s", "--repeat", "1", "--rate", "200")


def fill(url: str, lists: int = 20) -> ReleaseId:
    """Publish made-up lists."""
    shape = Shape(lists, 20)

    async def batches() -> AsyncIterator[list[Row]]:
        for rows in shape.batches(shape.drawn()):
            yield rows

    async def write() -> ReleaseId:
        store = connect(url)
        try:
            return ((await publish(store, batches(), plan=shape.plan, about={})).manifest).release
        finally:
            await store.close()

    return asyncio.run(write())


@pytest.mark.parametrize("secure", [False, True])
def test_our_emulator_reports_what_it_uses_and_what_one_database_holds(tmp_path: Path, *, secure: bool) -> None:
    with emulated_account(tmp_path / "ca.pem" if secure else None) as account:
        server = store_server(account.url("first", ru="1000"))
        assert server.stored_bytes() == 0
        fill(account.url("first", ru="1000"))
        held, used_s = server.stored_bytes(), server.cpu_s()
        fill(account.url("second", ru="1000"))
        assert held is not None
        assert held > 20 * 500
        assert server.stored_bytes() == held
        assert used_s is not None
        assert (server.cpu_s() or 0) > used_s
        assert (server.memory_bytes() or 0) > 1_000_000


def test_of_a_server_that_is_not_ours_or_not_there_nothing_is_known(redis_server: RedisServer) -> None:
    for url in ("cosmos+http://127.0.0.1:9/d", f"cosmos+http://127.0.0.1:{redis_server.port}/d"):
        server = store_server(url)
        assert (server.cpu_s(), server.memory_bytes(), server.stored_bytes()) == (None, None, None)


def test_reads_beyond_the_throughput_are_a_measurement_and_no_failure() -> None:
    with emulated_account(None) as account:
        url = account.url("throttled", ru="400")
        release = fill(url)
        keys = [f"user:{number:08}" for number in range(20)]
        found = look_up(url, store_server(url), release, {20: [keys]}, 1.0)[20]
        assert account.metric("hotplate_cosmos_emulator_requests_total")["read item", "429"] > 0
        assert found.keys_per_s > 0


@pytest.mark.soak
def test_cosmos_is_a_column_whose_times_are_not_azures(tmp_path: Path) -> None:
    with emulated_account(None) as account:
        urls = f"file://{tmp_path}/store", account.url("hotplate", ru="20000")
        fill(urls[0])
        done = hotplate("bench", "stores", *urls, *SMALL, "--publish", "--out", tmp_path / "found")
    assert done.returncode in {0, 1}, done.stderr  # 1 where the machine was too busy for a valid round
    facts = json.loads((tmp_path / "found.json").read_text())
    assert facts["comparison"]["stores"] == ["file://", "cosmos+http://"]
    assert facts["checked"]["wrong"] == 0
    cells = {(line["group"], line["name"]): line["cells"][1] for line in facts["comparison"]["lines"]}
    for timed in (
        ("Through the service", "p99"),
        ("Without a service, 1 key a call", "a call, median"),
        ("Publishing", "lists/s"),
    ):
        assert cells[timed] == "—"
    assert cells["Memory, and room in the store", "room a list takes"].endswith(" B")
    assert cells["CPU a request", "service"].endswith("µs")
    assert [series["name"] for series in facts["series"] if "cosmos" in series["name"]] == []
