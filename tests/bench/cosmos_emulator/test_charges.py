"""Charges compared with the documented ones: of the formulas, over the wire, and in our docs."""

import tomllib
from functools import partial
from typing import Any

import orjson
import pytest

from hotplate.stores.cosmos.charges import KB, OURS, load
from tests.support.clock import FakeClock
from tests.support.cosmos_server import Direct

DOCUMENTED = [entry for entry in tomllib.loads(OURS.read_text())["documented"] if not entry.get("superseded")]


@pytest.mark.parametrize("entry", DOCUMENTED, ids=lambda entry: entry["operation"])
def test_charges_are_within_a_tenth_of_the_documented(entry: dict[str, Any]) -> None:
    charges = load()
    terms = entry.get("terms", 0)
    for size_kb, documented_ru in zip(entry["sizes_kb"], entry["ru"], strict=True):
        size = round(size_kb * KB)
        sizes = [size] * entry.get("items", 1)
        ours: dict[str, partial[float]] = {
            "read": partial(charges.read, size, strong=entry.get("strong", False)),
            "create": partial(charges.create, size, terms),
            "replace": partial(charges.replace, size, size, terms, terms),
            "delete": partial(charges.delete, size, terms),
            "feed": partial(charges.feed, sizes),
            "query": partial(charges.query, sizes, scanned=[size] * entry.get("scanned", 0)),
        }
        assert ours[entry["operation"]]() == pytest.approx(documented_ru, rel=0.1), size_kb


def item_of(name: str, size: int, created: int = 0) -> dict[str, Any]:
    """Return an item that is stored in *size* bytes, of which the system properties take *made*."""
    item = {"id": name, "pad": ""}
    item["pad"] = "x" * (size - created - len(orjson.dumps(item)))
    return item


@pytest.mark.parametrize(("size_kb", "read_ru", "write_ru"), [(1, 1.0, 5.0), (4, 1.14, 6.67), (64, 4.76, 22.67)])
def test_measured_charges_match_the_formulas(clock: FakeClock, size_kb: int, read_ru: float, write_ru: float) -> None:
    direct = Direct(clock, indexingPolicy={"indexingMode": "none"})
    response = direct.item("POST", "a", {"id": "a"})
    item = item_of("a", size_kb * KB, len(response.body) - len(b'{"id":"a"}'))
    assert direct.item("DELETE", "a").status == 204
    response = direct.item("POST", "a", item)
    assert (len(response.body), response.charge_ru) == (size_kb * KB, write_ru)
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
