"""How figures are made: rounds and their sums, what commands spend, what memory workers add, and made-up lists."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.lists import DISTINCT, Shape
from bench.micro import publishing, spent
from bench.micro.rounds import (
    Figure,
    Reads,
    Sample,
    at_least,
    at_most,
    cpu_difference,
    figures,
    interleave,
    late_figures,
    ratio,
    ratios,
)
from bench.process import free_port, serving
from bench.report import machine
from stores.encoding import OFFSET_BYTES, decode
from stores.file.store import LmdbStore


def test_variants_take_turns_and_the_first_round_is_thrown_away() -> None:
    calls: list[str] = []

    def variant(name: str) -> Callable[[], Sample]:
        def measure() -> Sample:
            calls.append(name)
            return Sample(float(len(calls)), 1.0)

        return measure

    samples = interleave({"a": variant("a"), "b": variant("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert [sample.rate_per_s for sample in samples["a"]] == [3.0, 5.0]
    assert [sample.rate_per_s for sample in samples["b"]] == [4.0, 6.0]


def test_a_figure_has_its_median_and_spread_and_keeps_its_rounds() -> None:
    figure = Figure("a", "1/s", [3.0, 1.0, 2.0, 10.0, 2.5], at_least(2))
    written = figure.to_json()
    assert (written["median"], written["min"], written["max"]) == (2.5, 1.0, 10.0)
    assert written["values"] == [3.0, 1.0, 2.0, 10.0, 2.5]
    assert written["goal"] == "≥ 2"


def test_variants_are_compared_round_by_round() -> None:
    assert ratio("r", [10, 30], [20, 20]).values == [0.5, 1.5]
    ours, theirs = [Sample(10, 38), Sample(30, 39)], [Sample(20, 19), Sample(20, 20)]
    rate, cpu = ratios("x", ours, theirs, rate_goal=at_least(1))
    assert (rate.values, rate.met) == ([0.5, 1.5], True)
    assert cpu.values == [2, 39 / 20]
    assert (cpu_difference("x", ours, theirs, goal=at_most(10)).values, cpu_difference("x", ours, theirs).met) == (
        [19, 19],
        None,
    )
    assert cpu_difference("x", ours, theirs, goal=at_most(10)).met is False


def test_a_goal_is_met_by_the_median_and_the_bound_itself_is_good() -> None:
    assert Figure("a", "s", [1.0, 5.0, 6.0], at_most(5)).met is True
    assert Figure("a", "s", [1.0, 5.1, 6.0], at_most(5)).met is False
    assert Figure("a", "ratio", [0.1, 0.75, 0.75], at_least(0.75)).met is True
    assert Figure("a", "ratio", [0.1, 0.74, 0.9], at_least(0.75)).to_json()["met"] is False
    assert Figure("a", "s", [1.0]).met is None


def test_a_rate_never_stands_without_its_cpu() -> None:
    rate, cpu = figures("x", [Sample(100, 7)], each="list")
    assert (rate.unit, cpu.unit) == ("lists/s", "µs/list")
    assert (rate.median, cpu.median) == (100, 7)


def test_popular_lists_that_stood_in_are_reported() -> None:
    in_time, too_late = (Reads(Sample(1, 1), p50_us=2.0, p99_us=3.0, popular=share) for share in (0.0, 0.25))
    assert [figure.values for figure in late_figures("x", [in_time, too_late])] == [[0.0, 0.25]]
    assert late_figures("x", [in_time]) == []


def test_the_machine_is_described() -> None:
    described = machine.describe()
    assert described["python"].startswith("3.")
    assert "aiohttp" in described["versions"]
    assert all(described[name] for name in ("date", "cpu", "cores"))


def test_hotplates_own_settings_do_not_reach_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_FACTORS", "2")
    monkeypatch.setenv("OTHER", "1")
    assert "HOTPLATE_FACTORS" not in machine.environment()
    assert machine.environment()["OTHER"] == "1"


def test_a_server_that_does_not_start_is_an_error_with_its_own_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such store')"]
    with pytest.raises(RuntimeError, match="no such store"), serving(command, free_port(), "/"):
        pass


@pytest.mark.parametrize("shape", [Shape(10, items=1), Shape(10, items=20), Shape(10, items=20, title_chars=84)])
def test_a_shape_has_the_bytes_of_its_values_and_rows(shape: Shape) -> None:
    values = shape.values()
    assert {len(value) - OFFSET_BYTES for value in values} == {shape.value_bytes}
    assert len(set(values)) == DISTINCT
    rows = [row for batch in shape.batches(values) for row in batch]
    assert len(rows) == shape.plan.rows
    assert sum(len(key) + len(value) - OFFSET_BYTES for key, value in rows) == pytest.approx(
        shape.plan.payload_bytes, abs=13
    )
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    items = decode(rows[-1].value[OFFSET_BYTES:])
    assert len(items) == shape.items
    assert all(len(item.get("title", "")) == shape.title_chars for item in items)


def test_drawn_lists_are_as_long_as_the_shape_states_and_as_different_as_real_ones() -> None:
    shape = Shape(10, items=20)
    drawn = shape.drawn()
    assert len(set(drawn)) == DISTINCT
    assert sum(map(len, drawn)) / DISTINCT == pytest.approx(shape.value_bytes, rel=0.02)
    for items in (decode(body[OFFSET_BYTES:]) for body in drawn[:50]):
        assert len({item["id"] for item in items}) == shape.items
        assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)


def test_the_goals_are_for_the_lists_that_they_were_set_for() -> None:
    shapes = publishing.shapes_for(1_000_000)
    assert [shape.users for shape in shapes.values()] == [1_000_000, 100_000, 100_000, 100_000]
    assert [shape.value_bytes for shape in shapes.values()] == [598, 298, 1198, 2498]


def test_publishing_again_replaces_what_was_there(tmp_path: Path) -> None:
    shape = Shape(100, items=3)
    for _ in range(2):
        published, file_ratio = publishing.publish_once(shape, shape.values(), tmp_path / "store")
    assert published.lists == 100
    assert published.sample.cpu_us_per_op > 0
    assert file_ratio > 1
    store = LmdbStore(tmp_path / "store")
    assert (store.get(published.release, "user:00000099") or b"").endswith(shape.values()[99])
    assert len(list((tmp_path / "store" / "releases").glob("*.mdb"))) == 1


def test_compression_is_counted_by_itself_and_the_making_of_rows_not_at_all(tmp_path: Path) -> None:
    shape = Shape(2_000, items=20)
    published = publishing.publish_to(f"file://{tmp_path}", shape, shape.drawn(), "zstd")
    whole, preparing, making = published.whole, published.preparing, published.making
    assert whole.wall_s > making.wall_s > 0
    assert preparing.cpu_s > making.cpu_s > 0
    assert published.sample.cpu_us_per_op == pytest.approx((whole.cpu_s - preparing.cpu_s) * 500)
    assert published.compression_cpu_us == pytest.approx((preparing.cpu_s - making.cpu_s) * 500)
    assert published.stored_bytes < shape.plan.payload_bytes


def test_a_command_is_charged_what_it_spent_and_not_what_its_starter_has() -> None:
    mine = bytearray(os.urandom(1)) * 300_000_000
    small = spent.run([sys.executable, "-c", "print('hello')"])
    large = spent.run([sys.executable, "-c", "bytearray(b'x') * 100_000_000"])
    assert len(mine) > 250e6
    assert small.peak_mb < 60
    assert 100 < large.peak_mb < 160
    assert small.cpu_s > 0
    assert small.wall_s > 0


def test_a_command_that_fails_is_an_error_with_its_own_words() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3[^$]*no such model"):
        spent.run([sys.executable, "-c", "import sys; print('no such model', file=sys.stderr); sys.exit(3)"])
