"""Each subject of the figures from end to end at a small size, and what happens where there is no figure to give."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from bench.lists import DISTINCT, Shape, key_of
from bench.micro import __main__ as command
from bench.micro import commands, embedded, endpoint, generating, retail, sharing
from bench.micro.publishing import publish_once
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured, at_most
from bench.report import machine
from stores.encoding import decode
from stores.lmdb_store import LmdbStore
from tests.support.stores import ref

SMALL = Effort(rounds=1, users=2_000, round_s=0.1)


def by_name(found: list[Outcome]) -> dict[str, Figure]:
    assert all(isinstance(one, Figure) for one in found), found
    return {one.name: one for one in found if isinstance(one, Figure)}


@pytest.mark.parametrize("shape", [Shape(10, items=1), Shape(10, items=20), Shape(10, items=20, title_chars=84)])
def test_a_shape_says_what_its_values_and_rows_weigh(shape: Shape) -> None:
    values = shape.values()
    assert {len(value) for value in values} == {shape.value_bytes}
    assert len(set(values)) == DISTINCT
    rows = [row for batch in shape.batches(values) for row in batch]
    assert len(rows) == shape.plan.rows
    assert sum(len(row.key) + len(row.value) for row in rows) == pytest.approx(shape.plan.payload_bytes, abs=13)
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    items = decode(rows[-1].value)
    assert len(items) == shape.items
    assert all(len(item.get("title", "")) == shape.title_chars for item in items)


def test_the_goals_are_for_the_lists_that_they_were_set_for() -> None:
    shapes = embedded.shapes_for(1_000_000)
    assert [shape.users for shape in shapes.values()] == [1_000_000, 100_000, 100_000, 100_000]
    assert [shape.value_bytes for shape in shapes.values()] == [598, 298, 1198, 2498]


def test_the_embedded_store_gives_its_figures_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = by_name(embedded.measure(SMALL))
    assert all(value > 0 for figure in found.values() for value in figure.values if "adds" not in figure.name)
    goals = {figure.unit: str(figure.goal) for figure in found.values() if figure.goal}
    assert goals == {"µs/list": "≤ 5", "ratio": "≤ 3", "ms": "≤ 50", "MB": "≤ 50"}
    sizes = {name: figure for name, figure in found.items() if "file / keys" in name}
    assert [str(figure.goal or "") for figure in sizes.values()] == ["≤ 1.2", "≤ 1.2", "", ""]
    (pss,) = (figure for name, figure in found.items() if "Pss" in name)
    assert 0 < pss.median < 50
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_on_the_disk_skips_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1_000_000))
    (found,) = embedded.measure(SMALL)
    assert isinstance(found, Unmeasured)
    assert not found.failed
    assert "1 MB free" in found.reason


def test_publishing_again_replaces_what_was_there(tmp_path: Path) -> None:
    shape = Shape(100, items=3)
    for _ in range(2):
        published = publish_once(shape, shape.values(), tmp_path / "store")
    assert published.lists == 100
    assert published.cpu_s > 0
    assert published.sample.cpu_us_per_op == pytest.approx(published.cpu_s * 1e4)
    store = LmdbStore(tmp_path / "store")

    async def read() -> bytes | None:
        live = (await store.catalogue()).live
        assert live is not None
        value = store.get(ref(live), key_of(99))
        await store.close()
        return value

    assert asyncio.run(read()) == shape.values()[99]


def test_memory_is_read_from_the_rollup_in_megabytes() -> None:
    rollup = "55-7f ---p 0 00:00 0    [rollup]\nPss:   2000 kB\nPrivate_Dirty:  500 kB\nAnonymous:  250 kB\n"
    found = sharing.parse_memory(rollup)
    assert found == sharing.Memory(anonymous=0.256, private_dirty=0.512, pss=2.048)
    assert found - found == sharing.Memory(0, 0, 0)


def test_a_reader_that_dies_is_an_error_and_not_a_figure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        sharing.share(tmp_path / "nothing", 1)
    assert "no list to read" in capfd.readouterr().err


def test_a_command_tells_what_it_spent_and_not_what_its_starter_has() -> None:
    mine = bytearray(os.urandom(1)) * 300_000_000
    small = commands.run([sys.executable, "-c", "print('hello')"])
    large = commands.run([sys.executable, "-c", "bytearray(b'x') * 100_000_000"])
    assert len(mine) > 250e6
    assert small.peak_mb < 60
    assert 100 < large.peak_mb < 160
    assert small.cpu_s > 0
    assert small.wall_s > 0


def test_a_command_that_fails_is_an_error_with_its_own_words() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3[^$]*no such model"):
        commands.run([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"])


def test_hotplates_own_settings_do_not_reach_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_FACTORS", "2")
    monkeypatch.setenv("OTHER", "1")
    assert "HOTPLATE_FACTORS" not in machine.environment()
    assert machine.environment()["OTHER"] == "1"


def test_retail_trains_by_its_recipe_and_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"customer_id": user, "stock_code": f"{10_000 + item}", "quantity": 1, "unit_price": 1.0, "invoice_no": "a"}
        for user in range(40)
        for item in range(30)
        if (user + item) % 2
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "lines.parquet")
    monkeypatch.setattr("bench.micro.retail.DATA", tmp_path / "lines.parquet")
    found = by_name(retail.measure(SMALL))
    assert len(found) == 9
    assert all(figure.median > 0 for figure in found.values())
    assert {figure.name: str(figure.goal) for figure in found.values() if figure.goal} == {
        "Online Retail, train + publish: wall time": "≤ 60",
        "Online Retail, train + publish: peak memory": "≤ 1000",
    }


def test_retail_without_its_data_is_skipped_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.micro.retail.DATA", tmp_path / "none.parquet")
    written = tmp_path / "results.json"
    assert command.main(["--only", "retail", "--out", str(written)]) == 0
    assert "retail: skipped" in capsys.readouterr().out
    (figure,) = json.loads(written.read_text())["figures"]
    assert "none.parquet" in figure["skipped"]


def test_the_endpoint_is_measured_against_the_real_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = tmp_path / "results.json"
    assert command.main(["--only", "endpoint", "--rounds", "1", "--seconds", "0.2", "--out", str(written)]) == 0
    found: dict[str, Any] = {one["name"]: one for one in json.loads(written.read_text())["figures"]}
    assert len(found) == 6
    compared = found["GET on one core, hotplate / aiohttp: rate"]
    assert compared["goal"] == "≥ 0.75"
    assert compared["held"] is (compared["median"] >= 0.75)
    assert "≥ 0.75" in capsys.readouterr().out


def test_the_generator_is_measured_against_servers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "tools", lambda _: [])
    found = generating.measure(Effort(rounds=1, round_s=0.3))
    told = {one.name: one for one in found if isinstance(one, Figure)}
    assert told["server that stalls, open loop: p99 / arithmetic"].median > 0.5
    assert any(isinstance(one, Unmeasured) and "neither is installed" in one.reason for one in found)


def test_a_subject_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(effort: Effort) -> list[Outcome]:
        raise RuntimeError(f"no [server] in {effort.rounds} rounds")

    def give(effort: Effort) -> list[Outcome]:
        return [Figure("size", "MB", [float(effort.users)], at_most(1))]

    monkeypatch.setattr(endpoint, "measure", fail)
    monkeypatch.setattr(embedded, "measure", give)
    monkeypatch.setattr("bench.micro.retail.DATA", tmp_path / "none.parquet")
    written = tmp_path / "results.json"
    three = [word for name in ("endpoint", "embedded", "retail") for word in ("--only", name)]
    assert command.main([*three, "--rounds", "2", "--users", "7", "--out", str(written)]) == 1
    failed, given, skipped = json.loads(written.read_text())["figures"]
    assert failed == {"name": "endpoint", "failed": "no [server] in 2 rounds"}
    assert given["held"] is False
    assert "skipped" in skipped
    printed = capsys.readouterr().out
    assert "endpoint: FAILED, no [server] in 2 rounds" in printed
    assert "NO" in printed


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--users", "0"], ["--seconds", "0"], ["--only", "nothing"]])
def test_a_misuse_of_the_figures_exits_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(wrong)
    assert stopped.value.code == 2
