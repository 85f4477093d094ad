"""Prices from a server that answers as the documentation of Azure's retail price list describes it."""

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.planner import prices as azure_prices
from hotplate.bench.planner.prices import Prices, fetch_prices, load, parse
from tests.support.command import hotplate
from tests.support.http_server import http_server

TODAY = dt.date(2026, 11, 25)


def item(product: str, meter: str, price: float, **more: object) -> dict[str, object]:
    """Return one item with the fields of the documentation's sample that are read."""
    return {
        "currencyCode": "EUR", "tierMinimumUnits": 0.0, "retailPrice": price, "armRegionName": "westeurope",
        "effectiveStartDate": "2020-08-01T00:00:00Z", "meterName": meter, "productName": product, "skuName": meter,
        "unitOfMeasure": "1 Hour", "type": "Consumption", "isPrimaryMeterRegion": True,
    } | more  # fmt: skip


COSMOS = [
    item("Azure Cosmos DB", "100 RU/s", 0.0094), item("Azure Cosmos DB", "100 Multi-master RU/s", 0.0188),
    item("Azure Cosmos DB", "100 RU/s", 0.0), item("Azure Cosmos DB autoscale", "100 RU/s", 0.0141),
    item("Azure Cosmos DB serverless", "1M RUs", 0.28), item("Azure Cosmos DB", "Data Stored", 0.27),
    item("Azure Cosmos DB", "Data Stored", 0.2, tierMinimumUnits=1000.0),
]  # fmt: skip
MACHINES = [
    item("Virtual Machines Dsv5 Series Windows", "D4s v5", 0.4), item("Virtual Machines Dsv5 Series", "D4s v5", 0.22),
    item("Virtual Machines Dsv5 Series", "D4s v5 Spot", 0.05),
]  # fmt: skip
REDIS = [
    item("Azure Managed Redis - Balanced", "B5 Instance", 0.17, skuName="B5"),
    item("Azure Managed Redis - Memory Optimized", "M10 Instance", 0.3, skuName="B10"),
]


@contextmanager
def retail_list(status: int = 200, **change: Any) -> Iterator[str]:  # noqa: ANN401 -- fields of a page
    """Answer in pages of two items, by the service in the filter."""

    def respond(path: str, headers: Message, _: bytes) -> tuple[int, bytes]:
        query = parse_qs(urlsplit(path).query)
        condition = query["$filter"][0]
        skip = int(query.get("$skip", ["0"])[0])
        names = {"Azure Cosmos DB": COSMOS, "Virtual Machines": MACHINES, "Redis Cache": REDIS}
        items = next(prices for name, prices in names.items() if name in condition)
        more = f"http://{headers['Host']}{path.partition('&$skip')[0]}&$skip={skip + 2}"
        following = more if skip + 2 < len(items) else None
        page = {"BillingCurrency": "EUR", "Items": items[skip : skip + 2], "NextPageLink": following}
        return status, json.dumps(page | change).encode()

    with http_server(respond) as origin:
        yield f"{origin}/api/retail/prices"


def read(url: str) -> tuple[Prices, list[str]]:
    text, missing = fetch_prices("westeurope", "EUR", TODAY, url)
    return parse(text), missing


def test_prices_of_all_pages_become_a_file_of_prices() -> None:
    with retail_list() as url:
        prices, missing = read(url)
    assert prices.currency == "EUR"
    assert (prices["ru_hour"].amount, prices["ru_hour"].date, prices["ru_hour"].region) == (0.0094, TODAY, "westeurope")
    assert prices["autoscale_factor"].amount == pytest.approx(1.5)
    assert prices["storage_gb_month"].amount == 0.27
    assert prices["cpu_hour"].amount == pytest.approx(0.055)
    assert prices["serverless_million_ru"] is not None
    assert prices["serverless_million_ru"].amount == 0.28
    assert [(size.name, size.node_hour.amount, size.gb) for size in prices.redis] == [("B5", 0.17, 6)]
    assert {"B10", "disk_gb_month"} <= {*missing}
    assert {"ru_hour", "autoscale_factor", "redis_gb_hour"}.isdisjoint(missing)


def test_every_price_of_ours_is_written_or_named_as_missing() -> None:
    with retail_list() as url:
        prices, missing = read(url)
    assert load().named.keys() - prices.named.keys() - {"redis_gb_hour"} <= {*missing}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        *(({"status": status}, f"status {status}") for status in (404, 429)),
        ({"BillingCurrency": "USD"}, "prices are in USD, not in EUR"),
        ({"Items": 3}, "not a page of prices"),
        ({"Items": [item("x", "y", 1, retailPrice="dear")], "NextPageLink": None}, "not a page of prices"),
        ({"CustomerEntityId": "x" * 5_000_000}, "not a page of prices: Input data was truncated"),
    ],
)
def test_malformed_price_answer_is_refused(change: dict[str, Any], sentence: str) -> None:
    with retail_list(**change) as url, pytest.raises(BenchFailed, match=sentence):
        read(url)


@pytest.mark.parametrize(
    ("region", "currency"), [("West Europe", "EUR"), ("x' or 1 eq 1", "EUR"), ("westeurope", "eur")]
)
def test_invalid_region_or_currency_is_not_requested(region: str, currency: str) -> None:
    with pytest.raises(BenchMisused, match="--prices-from-azure"):
        fetch_prices(region, currency, TODAY, "http://127.0.0.1:1/")


@pytest.mark.parametrize(
    ("right", "wrong"), [("disk_gb_month", "disk_gb_mouth"), ("redis_quoted", "redis_qouted"), ("redis", "rediss")]
)
def test_a_misspelt_table_is_named(right: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(azure_prices.OURS.read_text().replace(f"[{right}]", f"[{wrong}]"))
    done = hotplate("plan", "--users", "1000", "--peak-rps", "10", "--prices", path)
    assert done.returncode == 2
    assert f"Object contains unknown field `{wrong}`" in " ".join(done.stderr.split())


def test_a_missing_price_is_named_unless_plans_do_without_it() -> None:
    ours = azure_prices.OURS.read_text()
    for name in load().named.keys() - {azure_prices.NOT_ASKED}:
        table = ours[ours.index(f"[{name}]") :].partition("\n\n")[0]
        without = ours.replace(table, "")
        if name in azure_prices.ESSENTIAL_PRICES:
            with pytest.raises(ValueError, match=f"missing required field `{name}`"):
                parse(without)
        else:
            assert parse(without).named.keys() == load().named.keys() - {name}


def test_an_invalid_price_is_named_with_its_table() -> None:
    with pytest.raises(ValueError, match=r"\$\.cpu_hour\.amount"):
        parse(azure_prices.OURS.read_text().replace("amount = 0.048", 'amount = "dear"'))


def test_command_writes_a_price_file_for_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.toml"
    with retail_list() as url:
        monkeypatch.setattr(azure_prices, "RETAIL", url)
        azure = ("plan", "--prices-from-azure", "westeurope", "EUR", "--prices", file)
        done = hotplate(*azure)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "no price under the expected names for: disk_gb_month, B0" in done.stderr.replace("\n", " ")
        assert hotplate(*azure, "--users", "1000", "--peak-rps", "10").stdout.count("EUR") > 1
        file.write_text("mine")
        refused = hotplate(*azure)
    assert refused.returncode == 2
    assert file.read_text() == "mine"
    assert not hotplate("plan", "--users", "1000", "--peak-rps", "10", "--prices", file).stdout
