"""A file of prices for `hotplate plan`, from Azure's public retail price list, which needs no account.

https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices describes the API. Prices in
other currencies than USD are for reference. Meters are found by the names of product and meter; those that the list
does not have are reported, and left out of the file.
"""

import datetime as dt
import json
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.planner.prices import OURS

RETAIL = "https://prices.azure.com/api/retail/prices"
COSMOS = "serviceName eq 'Azure Cosmos DB'"
MACHINES = "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_D4s_v5'"
REDIS = "serviceName eq 'Redis Cache' and contains(productName,'Managed Redis')"
MACHINE_CPUS = 4
# Machines that are not Linux at the full price.
OTHERS = re.compile("Windows|Spot|Low Priority")
AUTOSCALE_FACTOR = 1.5
HEAD = "# Azure's retail prices"

# Bounds of all requests together, and of one answer.
DEADLINE_S = 60.0
PAGES = 50
PAGE_BYTES = 4_000_000

# Prices of Cosmos DB by the names of product and meter, and what they are of.
METERS = {
    "ru_hour": ("Azure Cosmos DB", "100 RU/s", "100 RU/s provisioned for an hour, in each region"),
    "autoscale": ("Azure Cosmos DB autoscale", "100 RU/s", "100 RU/s of autoscale for an hour, in each region"),
    "serverless_million_ru": ("Azure Cosmos DB serverless", "1M RUs", "1,000,000 RU that were used"),
    "storage_gb_month": ("Azure Cosmos DB", "Data Stored", "GB of items for a month, in each region"),
}
REQUIRED = ("ru_hour", "storage_gb_month", "cpu_hour")


@dataclass(frozen=True, slots=True)
class Item:
    """One price of the list."""

    product: str
    meter: str
    sku: str
    price: float
    tier: float


def write_prices(region: str, currency: str, path: Path, today: dt.date) -> list[str]:
    """Write the file of prices, and return the names of what the list does not have.

    A file that was not written by this is kept: BenchMisused.
    """
    if path.exists() and not path.read_text(errors="replace").startswith(HEAD):
        raise BenchMisused(
            f"--prices: {path} exists and is not from Azure's price list; name another file, or remove it"
        )
    text, missing = fetch_prices(region, currency, today, RETAIL)
    path.write_text(text)
    return missing


def fetch_prices(region: str, currency: str, today: dt.date, url: str) -> tuple[str, list[str]]:
    """Return the text of a file of prices, and the names of what the list does not have.

    Raises BenchMisused for a region or a currency that cannot be one, and BenchFailed if the list does not answer, or
    lacks a price without which nothing can be planned.
    """
    if not re.fullmatch(r"[a-z0-9]{2,40}", region):
        raise BenchMisused(f"--prices-from-azure: {region!r} is not a region's name, such as westeurope")
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise BenchMisused(f"--prices-from-azure: {currency!r} is not a currency, such as EUR")
    ends = time.monotonic() + DEADLINE_S
    where = f"armRegionName eq '{region}' and priceType eq 'Consumption'"
    cosmos, machines, redis = (
        list(_items(url, f"{service} and {where}", currency, ends)) for service in (COSMOS, MACHINES, REDIS)
    )
    found = {
        name: _only(each for each in cosmos if (each.product, each.meter) == (product, meter))
        for name, (product, meter, _) in METERS.items()
    }
    found["cpu_hour"] = _only(each for each in machines if not OTHERS.search(f"{each.product} {each.sku}"))
    balanced = [each for each in redis if "Balanced" in each.product]
    sizes = {size["name"]: _only(each for each in balanced if each.sku == size["name"]) for size in _sizes()}
    missing = [name for name, price in {**found, **sizes}.items() if price is None]
    if lacking := [name for name in REQUIRED if name in missing]:
        raise BenchFailed(
            f"Azure's price list has no {', '.join(lacking)} for {region} in {currency}: is that its name?"
        )
    return _to_toml(found, sizes, f"{region} {currency}", today), missing


def _only(items: Iterable[Item]) -> float | None:
    """Return the price of the first tier that costs something; None if there is none, or several."""
    prices = {item.price for item in items if item.price > 0 and not item.tier}
    return prices.pop() if len(prices) == 1 else None


def _items(url: str, condition: str, currency: str, ends: float) -> Iterator[Item]:
    """Yield the items of all pages of an answer; each next page must be on the same host."""
    query = urlencode({"currencyCode": f"'{currency}'", "$filter": condition})
    following = f"{url}?{query}"
    for _ in range(PAGES):
        page = _page(following, ends)
        if page.get("BillingCurrency") != currency:
            raise BenchFailed(f"{url}: prices are in {str(page.get('BillingCurrency'))[:20]}, not in {currency}")
        yield from (_item(each, url) for each in page["Items"])
        following = str(page.get("NextPageLink") or "")
        if not following:
            return
        if _host(following) != _host(url):
            raise BenchFailed(f"{url}: the next page is on another host, {urlsplit(following).netloc[:80]}")
    raise BenchFailed(f"{url}: more than {PAGES} pages for {condition}")


def _item(found: Any, url: str) -> Item:  # noqa: ANN401 -- of JSON
    try:
        product, meter, sku = (str(found[name]) for name in ("productName", "meterName", "skuName"))
        return Item(product, meter, sku, float(found["retailPrice"]), float(found.get("tierMinimumUnits") or 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BenchFailed(f"{url}: the answer is not a page of prices: {error!r}") from error


def _host(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 -- as urllib's
        """Follow no redirect: it could lead to another host."""


def _page(url: str, ends: float) -> dict[str, Any]:
    """Read one page, of a bounded size and before the deadline."""
    shown, body = url.partition("?")[0], b""
    try:
        with build_opener(_NoRedirect).open(url, timeout=max(0.1, ends - time.monotonic())) as answer:
            while part := answer.read1(65_536):
                body += part
                if len(body) > PAGE_BYTES or time.monotonic() > ends:
                    raise BenchFailed(
                        f"{shown}: an answer of more than {PAGE_BYTES:,} bytes, or all of {DEADLINE_S:g} s"
                    )
        page = json.loads(body)
    except HTTPError as error:
        raise BenchFailed(f"{shown}: status {error.code}") from error
    except (OSError, ValueError) as error:
        raise BenchFailed(f"{shown}: {error}") from error
    if not isinstance(page, dict) or not isinstance(page.get("Items"), list):
        raise BenchFailed(f"{shown}: the answer is not a page of prices")
    return page


def _sizes() -> Sequence[Mapping[str, Any]]:
    """Return the capacities of Azure Managed Redis, which the price list does not have."""
    sizes: Sequence[Mapping[str, Any]] = tomllib.loads(OURS.read_text())["redis"]
    return sizes


def _to_toml(found: Mapping[str, float | None], sizes: Mapping[str, float | None], where: str, today: dt.date) -> str:
    region, currency = where.split()
    origin = f'region = "{region}"\ndate = {today}\nsource = "{RETAIL}"\nbasis = "listed"\nwithin = 0\n'
    prices = {name: (found[name], per) for name, (_, _, per) in METERS.items() if name != "autoscale"}
    machine, ru_hour, autoscale = found["cpu_hour"] or 0, found["ru_hour"], found["autoscale"]
    prices["cpu_hour"] = machine / MACHINE_CPUS, f"vCPU for an hour: a quarter of a Standard_D4s_v5 at {machine:g}"
    factor = round(autoscale / ru_hour, 6) if autoscale and ru_hour else AUTOSCALE_FACTOR
    prices["autoscale_factor"] = factor, "price of an autoscale RU/s by that of a manual one"
    lines = [f"{HEAD} of {today}, by hotplate plan --prices-from-azure {where}", f'currency = "{currency}"', ""]
    for name, (amount, per) in prices.items():
        if amount is not None:
            lines += [f"[{name}]", f"amount = {amount:.10g}", f'per = "{per}"', origin]
    for size in _sizes():
        if (price := sizes[size["name"]]) is not None:
            lines += ["[[redis]]", f'name = "{size["name"]}"', f"amount = {price:.10g}", 'basis = "listed"']
            lines += [*(f"{name} = {size[name]}" for name in ("gb", "vcpus", "shards", "gets_s")), ""]
    return "\n".join([*lines, "[redis_quoted]", origin])
