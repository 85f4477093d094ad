"""Each benchmark of servers from end to end at a small size, and what happens where there is no figure to give."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from aiohttp import web

from bench.loadgen.generator import run
from bench.loadgen.load import Load
from bench.loadgen.result import Result
from bench.micro import big_release, c_peers, cosmos, hot_path, http_peer, publishing, redis, training
from bench.micro.rounds import ROUTE, Effort, Figure, Outcome, Reads, Sample, Unmeasured
from bench.process import free_port, redis_serving, serving
from tests.support.soak import scaled

SMALL = Effort(rounds=1, users=2_000, round_s=0.1)
SOAKED = Effort(rounds=scaled(1), users=2_000, round_s=0.3)
RESPONSE_HEADERS = {"Content-Type": "application/json", "ETag": '"abc"', "X-Request-Id": "1"}

Measure = Callable[[Effort], list[Outcome]]
OF_REDIS: tuple[Measure, ...] = (redis.measure_service, redis.measure_reads, redis.measure_publishing)

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH")


def named(outcomes: list[Outcome]) -> dict[str, Figure]:
    assert all(isinstance(one, Figure) for one in outcomes), outcomes
    return {one.name: one for one in outcomes if isinstance(one, Figure)}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything temporary goes, so that a test sees what is left behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_files_give_their_figures_and_nothing_is_left_behind(temporary: Path) -> None:
    measured = named(publishing.measure_files(SMALL))
    assert all(value > 0 for figure in measured.values() for value in figure.values if "adds" not in figure.name)
    goals = {figure.unit: str(figure.goal) for figure in measured.values() if figure.goal}
    assert goals == {"µs/list": "≤ 5", "ratio": "≤ 1.2"}
    sizes = {name: figure for name, figure in measured.items() if "file / keys" in name}
    assert [str(figure.goal or "") for figure in sizes.values()] == ["≤ 1.2", "≤ 1.2", "", ""]
    assert list(temporary.iterdir()) == []


def test_too_little_room_on_the_disk_skips_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1_000_000))
    (outcome,) = publishing.measure_files(SMALL)
    assert isinstance(outcome, Unmeasured)
    assert not outcome.failed
    assert "1 MB free" in outcome.reason


async def test_the_peer_gives_the_responses_that_it_copied() -> None:
    async def original(request: web.Request) -> web.Response:
        body = b'{"user":"%b","items":[]}' % request.match_info["user"].encode()
        return web.Response(body=body, headers=RESPONSE_HEADERS)

    app = web.Application()
    app.router.add_get(ROUTE + "{user}", original)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    paths, port = http_peer.PATHS[:3], free_port()
    command = [sys.executable, "-m", "bench.micro.http_peer", "--port", str(port), "--like", url]

    def compare() -> Result:
        with serving(command, port, paths[0]) as peer:
            http_peer.must_be_alike(url + paths[1], peer.url + paths[1])
            with pytest.raises(RuntimeError, match="bodies"):
                http_peer.must_be_alike(url + paths[1], peer.url + paths[2])
            result = run(Load(url=peer.url, paths=paths, rate=None, duration_s=0.2, connections=4))
            assert peer.cpu_s() > 0
            return result

    try:
        result = await asyncio.to_thread(compare)
    finally:
        await runner.cleanup()
    assert result.ok > 0
    assert not result.errors


def test_the_service_is_measured_beside_its_peer(temporary: Path) -> None:
    measured = named(http_peer.measure(SMALL))
    assert len(measured) == 6
    compared = measured["GET on one core, hotplate / aiohttp: rate"]
    assert str(compared.goal) == "≥ 0.75"
    assert compared.met is (compared.median >= 0.75)
    assert list(temporary.iterdir()) == []


@pytest.mark.soak
@needs_redis
def test_the_hot_path_is_measured_beside_what_is_installed(temporary: Path) -> None:
    outcomes = hot_path.measure(SOAKED)
    measured = {one.name: one for one in outcomes if isinstance(one, Figure)}
    assert {program for program in ("nginx", "webdis", "wrk") if c_peers.missing(program) is None} == {
        program for program in ("nginx", "webdis", "wrk") if any(program in name for name in measured)
    }
    assert not any(one.failed for one in outcomes if isinstance(one, Unmeasured))
    assert all(value > 0 for figure in measured.values() for value in figure.values if "lag" not in figure.name)
    goals = {name.removeprefix("hot path").strip(", "): str(one.goal) for name, one in measured.items() if one.goal}
    assert (
        goals.items()
        >= {
            "changing headers, hotplate / aiohttp: rate": "≥ 3",
            "at half of its capacity, p99.9: with a flip / without": "≤ 2",
            "two workers on one core / one: CPU": "≤ 1.1",
        }.items()
    )
    assert list(temporary.iterdir()) == []


def test_without_what_is_written_in_c_there_are_reasons_and_the_rest_of_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(c_peers, "path_of", lambda _: None)
    sample = Sample(100.0, 10.0)
    taken = {f"{name}, {what}": [sample] for name in ("hotplate", "aiohttp") for what in hot_path.LOADS}
    outcomes = [*hot_path.saturated_figures(taken), *hot_path.measure_redis(SMALL)]
    reasons = {one.name: one.reason for one in outcomes if isinstance(one, Unmeasured) and not one.failed}
    assert len(reasons) == len(hot_path.LOADS) + 2
    assert all("apt-get install" in reason for reason in reasons.values())
    figures = {one.name: one for one in outcomes if isinstance(one, Figure)}
    assert figures["hot path, changing headers, hotplate / aiohttp: rate"].met is False


def test_headers_that_change_are_sent_in_turn_and_the_keys_go_on() -> None:
    load = hot_path.loads_of(SMALL, {"X-API-Key": "k"})[hot_path.CHANGING]
    requests = [bytes(request) for _, request in zip(range(10), load.rendered(), strict=False)]
    assert len({request.partition(b"traceparent: ")[2][:55] for request in requests}) == 10
    assert len({request.partition(b" HTTP/1.1")[0] for request in requests}) > 1
    assert all(request.count(b"\r\nX-API-Key: k\r\n") == 1 for request in requests)


@pytest.mark.skipif(c_peers.missing("nginx") is not None, reason="no nginx on this machine")
def test_nginx_gives_the_response_that_it_was_given() -> None:
    body = b'{"user":"1","items":[]}'
    with c_peers.nginx_serving(body, RESPONSE_HEADERS) as nginx:
        given, headers = http_peer.fetch(nginx.url)
        assert given == body
        assert {name: headers[name] for name in RESPONSE_HEADERS} == RESPONSE_HEADERS
    with pytest.raises(ValueError, match="more than text"), c_peers.nginx_serving(b"$uri", RESPONSE_HEADERS):
        pass


@pytest.mark.skipif(c_peers.missing("wrk") is not None, reason="no wrk on this machine")
def test_wrk_sends_the_requests_that_it_is_given_and_its_errors_are_ours() -> None:
    port, request = free_port(), b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving([sys.executable, "-m", "bench.micro.generator", "--port", str(port)], port, "/") as one:
        count, duration_s = c_peers.run_wrk(one.url, [request], 0.1)
        assert duration_s == 1
        assert count > 1
    with pytest.raises(RuntimeError, match="unable to connect"):
        c_peers.run_wrk(one.url, [request], 0.1)


@pytest.mark.soak
def test_retail_trains_by_its_recipe_and_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "RETAIL", invoices(tmp_path))
    measured = named(training.measure_retail(SOAKED))
    assert len(measured) == 19
    assert all(figure.median > 0 for figure in measured.values())
    assert {figure.name: str(figure.goal) for figure in measured.values() if figure.goal} == {
        f"Online Retail, {ours} / bare: {what}": goal
        for ours in ("train + publish", "run")
        for what, goal in (("CPU", "≤ 1.15"), ("peak memory", "≤ 1.1"))
    }


@pytest.mark.soak
def test_a_publish_at_a_rate_is_put_beside_its_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosmos, "RETAIL", invoices(tmp_path))
    measured = named(cosmos.measure_publishing(SOAKED))
    assert len(measured) == 8
    rows = measured["local emulator, not Azure, publish at 1,000 RU/s: rows"]
    assert rows.median > 40
    estimated, charged = (figure.median for figure in measured.values() if figure.unit == "RU/row")
    assert charged == pytest.approx(estimated, rel=0.01)


def invoices(folder: Path) -> Path:
    """Write a file of invoices as Online Retail has them."""
    rows = [
        {"customer_id": user, "stock_code": f"{10_000 + item}", "quantity": 1, "unit_price": 1.0, "invoice_no": "a"}
        for user in range(40)
        for item in range(30)
        if (user + item) % 2
    ]
    pl.DataFrame(rows).write_parquet(folder / "lines.parquet")
    return folder / "lines.parquet"


def test_redis_is_compared_with_files_round_by_round() -> None:
    def reads(cpu_us: float, popular: float = 0.0) -> redis.ServiceReads:
        return redis.ServiceReads(Reads(Sample(100.0, cpu_us), p50_us=2.0, p99_us=3.0, popular=popular), 1.0)

    taken = {
        f"{name} {rate}": [reads(cpu_us), reads(cpu_us + 1)]
        for name, cpu_us in (("file:// zstd", 31), ("redis:// zstd", 43))
        for rate in (None, redis.RATE)
    }
    compared = {figure.name: figure for figure in redis.beside_files("zstd", taken)}
    saturated = compared["GET on one core, zstd, redis:// - file://: CPU"]
    assert (saturated.values, saturated.met) == ([12, 12], False)
    assert compared["GET at 5,000/s, zstd, redis:// - file://: CPU"].met is None
    assert compared["GET on one core, zstd, redis:// / file://: rate"].values == [1, 1]
    units = [figure.unit for figure in redis.server_figures("redis:// zstd", taken)]
    assert units == ["requests/s", "µs/request", "µs/request", "µs/request", "µs", "µs", "µs/request"]
    late = list(redis.beyond_files("GET, redis:// json", [reads(1.0, popular=0.25)]))
    assert [figure.values for figure in late if "popular" in figure.name] == [[0.25]]


@pytest.mark.parametrize("measure", OF_REDIS)
def test_without_redis_server_there_is_a_reason_instead_of_figures(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (outcome,) = measure(SMALL)
    assert isinstance(outcome, Unmeasured)
    assert not outcome.failed
    assert "apt-get install redis-server" in outcome.reason


@needs_redis
def test_the_redis_server_of_a_benchmark_reports_what_it_spends_and_can_be_emptied() -> None:
    with redis_serving() as server:
        empty = server.used_bytes()
        server.execute("SET", "key", "x" * 1_000_000)
        assert server.used_bytes() - empty > 1_000_000
        server.clear()
        assert server.used_bytes() - empty < 100_000
        assert server.cpu_s() > 0
    assert not server.is_ready()


@needs_redis
@pytest.mark.parametrize("measure", [redis.measure_reads, redis.measure_publishing])
def test_redis_gives_its_figures_and_nothing_is_left_behind(measure: Measure, temporary: Path) -> None:
    measured = named(measure(SMALL))
    assert measured
    assert all(value >= 0 for figure in measured.values() for value in figure.values)
    assert list(temporary.iterdir()) == []


@needs_redis
@pytest.mark.soak
def test_the_service_over_redis_gives_its_figures_and_nothing_is_left_behind(temporary: Path) -> None:
    measured = named(redis.measure_service(SOAKED))
    assert len([name for name in measured if "late" not in name and "popular" not in name]) == 30
    assert all(value >= 0 for name, figure in measured.items() for value in figure.values if " - " not in name)
    assert list(temporary.iterdir()) == []


@needs_redis
@pytest.mark.soak
def test_a_big_release_goes_all_its_steps_and_nothing_is_left_behind(temporary: Path) -> None:
    measured = named(big_release.measure(SMALL))
    steps = {name.partition(": ")[2] for name in measured if name.endswith("peak memory")}
    assert steps == {"import: peak memory", "copy to Redis: peak memory", "verify: peak memory", "sample: peak memory",
                     "diff: peak memory", "prune: peak memory"}  # fmt: skip
    assert len([name for name in measured if name.endswith("CPU") and name.startswith("GET")]) == 6
    assert list(temporary.iterdir()) == []


@pytest.mark.alone  # two short measurements are compared
def test_every_client_of_cosmos_reads_and_ours_costs_less() -> None:
    measured = named(cosmos.measure_reads(SMALL))
    assert len(measured) == 11
    rates = [one.median for one in measured.values() if one.unit == "reads/s"]
    assert len(rates) == 4
    assert min(rates) > 0
    assert measured["cosmos reads, hotplate / azure-cosmos as it comes: CPU"].median < 1


def test_what_cosmos_takes_beyond_files_is_taken_round_by_round() -> None:
    def reads(rate_per_s: float, cpu_us: float) -> Reads:
        return Reads(Sample(rate_per_s, cpu_us), p50_us=1.0, p99_us=1.0, popular=0.0)

    taken = {
        cosmos.FILES: [reads(20_000, 30.0), reads(10_000, 60.0)],
        cosmos.PLAIN: [reads(10_000, 50.0), reads(9_000, 90.0)],
        cosmos.SECURE: [reads(10_000, 60.0), reads(9_000, 100.0)],
    }
    figures = {figure.name: figure.values for figure in cosmos.service_figures(taken)}
    assert figures["GET, cosmos+http:// - file://: CPU"] == [20.0, 30.0]
    assert figures["GET, cosmos+https:// - file://: CPU"] == [30.0, 40.0]
    assert figures["GET, cosmos+http://: rate"] == [10_000, 9_000]
    goals = {figure.name: str(figure.goal) for figure in cosmos.service_figures(taken) if figure.goal}
    assert goals == {"GET, cosmos+http://: CPU": "≤ 30"}


@pytest.mark.soak
def test_each_store_is_read_and_gives_users_lists() -> None:
    measured = named(cosmos.measure_service(SOAKED))
    assert len([name for name in measured if "popular" not in name]) == 8
