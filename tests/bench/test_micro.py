"""How the figures are made: rounds, their sums, servers in processes of their own, and a peer that is truly alike."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from bench.micro import aiohttp_peer, endpoint
from bench.micro.rounds import Figure, Sample, at_least, at_most, figures, interleave, ratio
from bench.process import free_port, serving
from bench.report import machine
from stores.connect import connect
from tests.support.stores import ref

ANSWER_HEADERS = {"Content-Type": "application/json", "ETag": '"abc"', "X-Request-Id": "1"}


def test_variants_take_turns_and_the_first_round_is_thrown_away() -> None:
    turns: list[str] = []

    def variant(name: str) -> Callable[[], Sample]:
        def measure() -> Sample:
            turns.append(name)
            return Sample(float(len(turns)), 1.0)

        return measure

    samples = interleave({"a": variant("a"), "b": variant("b")}, rounds=2)
    assert turns == ["a", "b"] * 3
    assert [sample.rate_per_s for sample in samples["a"]] == [3.0, 5.0]
    assert [sample.rate_per_s for sample in samples["b"]] == [4.0, 6.0]


def test_a_figure_is_told_by_its_median_and_spread_and_keeps_its_rounds() -> None:
    figure = Figure("a", "1/s", [3.0, 1.0, 2.0, 10.0, 2.5], at_least(2))
    assert (figure.median, figure.min, figure.max) == (2.5, 1.0, 10.0)
    assert figure.to_json()["values"] == [3.0, 1.0, 2.0, 10.0, 2.5]
    assert figure.to_json()["goal"] == "≥ 2"


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio("r", [10, 30], [20, 20]).values == [0.5, 1.5]


def test_a_goal_is_held_by_the_median_and_the_bound_itself_is_good() -> None:
    assert Figure("a", "s", [1.0, 5.0, 6.0], at_most(5)).held is True
    assert Figure("a", "s", [1.0, 5.1, 6.0], at_most(5)).held is False
    assert Figure("a", "ratio", [0.1, 0.75, 0.75], at_least(0.75)).held is True
    assert Figure("a", "ratio", [0.1, 0.74, 0.9], at_least(0.75)).to_json()["held"] is False
    assert Figure("a", "s", [1.0]).held is None


def test_a_rate_never_stands_without_its_cpu() -> None:
    rate, cpu = figures("x", [Sample(100, 7)], each="list")
    assert (rate.unit, cpu.unit) == ("lists/s", "µs/list")
    assert (rate.median, cpu.median) == (100, 7)


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert found["python"].startswith("3.")
    assert "aiohttp" in found["versions"]
    assert all(found[name] for name in ("date", "cpu", "cores"))


async def serve_beside(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_the_peer_gives_the_answers_that_it_copied(tmp_path: Path) -> None:
    async def original(request: web.Request) -> web.Response:
        body = b'{"user":"%b","items":[]}' % request.match_info["user"].encode()
        return web.Response(body=body, headers=ANSWER_HEADERS)

    app = web.Application()
    app.router.add_get(aiohttp_peer.ROUTE + "{user}", original)
    runner, url = await serve_beside(app)
    paths = [f"{aiohttp_peer.ROUTE}{number}" for number in range(3)]
    listed = tmp_path / "paths"
    listed.write_text("\n".join(paths))
    port = free_port()
    command = [sys.executable, "-m", "bench.micro.aiohttp_peer", "--port", str(port)]
    command += ["--like", url, "--paths-file", str(listed)]

    def look() -> Result:
        with serving(command, port, paths[0]) as peer:
            endpoint.must_be_alike(url + paths[1], peer.url + paths[1])
            with pytest.raises(RuntimeError, match="bodies"):
                endpoint.must_be_alike(url + paths[1], peer.url + paths[2])
            found = run(Load(url=peer.url, paths=paths, rate=None, duration_s=0.2, connections=4))
            assert peer.cpu_s() > 0
            return found

    try:
        result = await asyncio.to_thread(look)
    finally:
        await runner.cleanup()
    assert result.ok > 0
    assert not result.errors


def test_a_server_that_does_not_start_is_told_with_its_own_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such store')"]
    with pytest.raises(RuntimeError, match="no such store"), serving(command, free_port(), "/"):
        pass


async def test_the_sample_store_has_a_list_for_each_user(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    await endpoint.fill(url)
    store = connect(url)
    try:
        live = (await store.catalogue()).live
        assert live is not None
        slots = await store.get_many(ref(live), ["user:0", f"user:{endpoint.USERS - 1}", "popular:", "user:unknown"])
    finally:
        await store.close()
    assert [isinstance(slot, bytes) for slot in slots] == [True, True, True, False]
