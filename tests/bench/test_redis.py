"""The figures of Redis: what they are made of, each subject from end to end at a small size, and what skips them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.lists import DISTINCT, Shape
from bench.micro import redis_lookups, redis_publishing, redis_readers, redis_service, webdis
from bench.micro.redis_lists import LIST_LENGTH
from bench.micro.redis_publishing import Published
from bench.micro.redis_reads import Reads, path_of
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured
from bench.process import redis_serving
from stores.encoding import decode

SMALL = Effort(rounds=1, users=2_000, round_s=0.1)

Measure = Callable[[Effort], list[Outcome]]
SUBJECTS: tuple[Measure, ...] = (
    redis_service.measure,
    redis_publishing.measure,
    redis_readers.measure,
    redis_lookups.measure,
)

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH")


def named(found: list[Outcome]) -> dict[str, Figure]:
    return {one.name: one for one in found if isinstance(one, Figure)}


def reads(cpu_us: float, rate_per_s: float = 100.0, popular: float = 0.0) -> Reads:
    return Reads(rate_per_s, cpu_us, redis_cpu_us=1.0, p50_us=2.0, p99_us=3.0, popular=popular)


def test_lists_are_as_long_as_the_shape_says_and_as_different_as_real_ones() -> None:
    shape = Shape(10, LIST_LENGTH)
    drawn = shape.drawn()
    assert len(set(drawn)) == DISTINCT
    assert sum(map(len, drawn)) / DISTINCT == pytest.approx(shape.value_bytes, rel=0.02)
    for items in map(decode, drawn[:50]):
        assert len({item["id"] for item in items}) == LIST_LENGTH
        assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)


def test_webdis_is_told_where_redis_is_and_stays_in_the_foreground(tmp_path: Path) -> None:
    binary, settings = webdis.command(tmp_path, port=1, redis_port=2)
    told = json.loads(Path(settings).read_text())
    assert binary == "webdis"
    assert (told["http_host"], told["http_port"], told["redis_port"], told["daemonize"]) == ("127.0.0.1", 1, 2, False)


def test_redis_is_held_against_files_round_by_round_and_against_webdis() -> None:
    taken = {
        (name, closed): [reads(cpu_us), reads(cpu_us + 1)]
        for name, cpu_us in (
            ("file:// json", 30), ("redis:// json", 38), ("file:// zstd", 31), ("redis:// zstd", 43), ("webdis", 19),
        )
        for closed in (True, False)
    }  # fmt: skip
    found = named(redis_service.outcomes(taken))
    more = found["GET on one core, json, redis:// - file://: CPU"]
    assert (more.values, more.held) == ([8, 8], True)
    assert found["GET on one core, zstd, redis:// - file://: CPU"].held is False
    assert found["GET at 5,000/s, zstd, redis:// - file://: CPU"].held is None
    assert found["GET on one core, redis:// json / webdis: CPU"].values == [2, 39 / 20]
    assert found["GET on one core, json, redis:// / file://: rate"].values == [1, 1]
    del taken["webdis", True], taken["webdis", False]
    assert not any("webdis" in name for name in named(redis_service.outcomes(taken)))


def test_answers_that_were_not_the_users_own_are_told() -> None:
    figures = redis_service.steady("redis:// json", [reads(1.0, popular=0.25)])
    assert [figure.values for figure in figures if "popular" in figure.name] == [[0.25]]
    assert not any("popular" in figure.name for figure in redis_service.steady("redis:// json", [reads(1.0)]))


def test_compression_is_told_by_itself_and_the_goal_is_for_the_rest() -> None:
    taken = [Published(1, cpu_us=3, compression_cpu_us=4, server_cpu_us=5, stored_bytes=6, used_bytes=7)]
    json_figures, zstd_figures = (
        redis_publishing.figures(Shape(10, 1), encoding, taken) for encoding in ("json", "zstd")
    )
    assert [figure.median for figure in zstd_figures] == [1, 3, 4, 5, 6, 7]
    assert [figure.median for figure in json_figures] == [1, 3, 5, 6, 7]
    assert [figure.median for figure in zstd_figures if figure.held] == [3]


@pytest.mark.parametrize("measure", SUBJECTS)
def test_without_redis_server_there_is_a_reason_instead_of_figures(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (found,) = measure(SMALL)
    assert isinstance(found, Unmeasured)
    assert not found.failed
    assert "apt-get install redis-server" in found.reason


@needs_redis
def test_the_server_tells_what_it_spends_and_forgets_all() -> None:
    with redis_serving() as server:
        empty = server.used_bytes()
        server._execute("SET", "key", "x" * 1_000_000)
        assert server.used_bytes() - empty > 1_000_000
        server.clear()
        assert server.used_bytes() - empty < 100_000
        assert server.cpu_s() > 0
    assert not server.is_ready()


@needs_redis
@pytest.mark.parametrize("measure", SUBJECTS)
def test_each_subject_gives_its_figures_and_leaves_nothing_behind(
    measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = named(measure(SMALL))
    assert found
    assert all(value >= 0 for name, figure in found.items() for value in figure.values if " - " not in name)
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_that_of_a_users_list() -> None:
    assert path_of(7) == "/v1/recommendations/00000007"
