"""Comparing with a Cosmos store: what its emulator tells of itself, reads that are throttled, and the third column."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.backing import CosmosEmulator, backing
from bench.lists import Shape
from bench.lookups import look_up
from stores.catalogue import ReleaseId
from stores.connect import connect
from stores.lifecycle import publish
from stores.store import Row
from tests.support.cosmos_drivers import account
from tests.support.redis_server import RedisServer
from tests.support.stores import ref

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
def test_our_emulator_tells_what_it_spends_and_what_one_database_holds(tmp_path: Path, *, secure: bool) -> None:
    with account(tmp_path / "ca.pem" if secure else None) as far:
        behind = backing(far.url("first", ru="1000"))
        assert behind.stored_bytes() == 0
        fill(far.url("first", ru="1000"))
        held, spent_s = behind.stored_bytes(), behind.cpu_s()
        fill(far.url("second", ru="1000"))
        assert held is not None
        assert held > 20 * 500
        assert behind.stored_bytes() == held
        assert spent_s is not None
        assert (behind.cpu_s() or 0) > spent_s
        assert (behind.memory_bytes() or 0) > 1_000_000


def test_of_a_server_that_is_not_ours_or_not_there_nothing_is_known(redis_server: RedisServer) -> None:
    for url in ("cosmos+http://127.0.0.1:9/d", f"cosmos+http://127.0.0.1:{redis_server.port}/d"):
        behind = CosmosEmulator(url)
        assert (behind.cpu_s(), behind.memory_bytes(), behind.stored_bytes()) == (None, None, None)


def test_reads_beyond_the_throughput_are_a_measurement_and_no_failure() -> None:
    with account(None) as far:
        url = far.url("throttled", ru="400")
        release = fill(url)
        keys = [f"user:{number:08}" for number in range(20)]
        found = look_up(url, backing(url), ref(release), [keys], 1.0)
        assert far.told("hotplate_cosmos_emulator_requests_total")["read item", "429"] > 0
        assert found.keys_per_s > 0


def test_cosmos_is_a_column_whose_times_are_not_azures(tmp_path: Path) -> None:
    with account(None) as far:
        urls = f"file://{tmp_path}/store", far.url("hotplate", ru="20000")
        fill(urls[0])
        command = [sys.executable, "-m", "hotplate", "bench", "stores", *urls, *SMALL, "--publish"]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "found")],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=os.environ | {"COLUMNS": "200", "TERM": "dumb"},
        )
    assert done.returncode in {0, 1}, done.stderr  # 1 where the machine was too busy for a valid round
    facts = json.loads((tmp_path / "found.json").read_text())
    assert facts["comparison"]["stores"] == ["file://", "cosmos+http://"]
    assert facts["checked"]["wrong"] == 0
    cells = {(line["group"], line["name"]): line["cells"][1] for line in facts["comparison"]["lines"]}
    for timed in (("Through the service", "p99"), ("Alone, 1 key a call", "a call, median"), ("Publishing", "lists/s")):
        assert cells[timed] == "local emulator, not Azure"
    assert cells["Memory, and room in the store", "room a list takes"].endswith(" B, as charged")
    assert cells["CPU a request", "service"].endswith("µs")
    assert [series["name"] for series in facts["series"] if "cosmos" in series["name"]] == []
