"""What is charged, held against what the documents say: by the formulas, over the wire, and in our own docs."""

from typing import Any

import orjson
import pytest

from hotplate.stores.cosmos.charges import KB, load
from tests.support.charge_table import Row, compare, documented
from tests.support.clock import FakeClock
from tests.support.cosmos_server import Direct
from tests.support.paths import ROOT

PAGE = ROOT / "bench" / "cosmos_emulator" / "README.md"
ROWS = compare(load(), documented())


@pytest.mark.parametrize("row", [one for one in ROWS if not one.superseded], ids=str)
def test_charges_are_within_a_tenth_of_the_documented(row: Row) -> None:
    assert row.ours_ru == pytest.approx(row.documented_ru, rel=0.1)


def item_of(name: str, size: int, made: int = 0) -> dict[str, Any]:
    """Return an item that is stored in *size* bytes, of which the system properties take *made*."""
    item = {"id": name, "pad": ""}
    item["pad"] = "x" * (size - made - len(orjson.dumps(item)))
    return item


@pytest.mark.parametrize(("size_kb", "read_ru", "write_ru"), [(1, 1.0, 5.0), (4, 1.14, 6.67), (64, 4.76, 22.67)])
def test_the_wire_says_what_the_formulas_say(clock: FakeClock, size_kb: int, read_ru: float, write_ru: float) -> None:
    direct = Direct(clock, indexingPolicy={"indexingMode": "none"})
    made = direct.item("POST", "a", {"id": "a"})
    item = item_of("a", size_kb * KB, len(made.body) - len(b'{"id":"a"}'))
    assert direct.item("DELETE", "a").status == 204
    made = direct.item("POST", "a", item)
    assert (len(made.body), made.charge_ru) == (size_kb * KB, write_ru)
    assert direct.item("GET", "a").charge_ru == read_ru
    assert direct.item("PUT", "a", item).charge_ru == 2 * write_ru
    assert direct.item("DELETE", "a").charge_ru == write_ru
    assert direct.item("GET", "a").charge_ru == 1.0


def test_indexed_terms_are_charged_as_in_the_documents_examples(clock: FakeClock) -> None:
    direct = Direct(clock)
    item = {"id": "a", **{str(n): n for n in range(9)}}
    assert direct.item("POST", "a", item).charge_ru == 7.0
    assert direct.item("PUT", "a", {**item, "0": "x", "1": "y"}).charge_ru == 10.8
    assert direct.item("DELETE", "a").charge_ru == 7.0


def test_strong_reads_cost_twice_as_much(clock: FakeClock) -> None:
    direct = Direct(clock)
    direct.service.account.consistency = "Strong"
    assert direct.item("POST", "a", {"id": "a"}).charge_ru == 5.2
    assert direct.item("GET", "a").charge_ru == 2.0
    assert direct.item("GET", "a", x_ms_consistency_level="Eventual").charge_ru == 1.0
