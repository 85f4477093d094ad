"""The cost of a publish: estimated for `--dry-run`, and measured while it runs."""

from math import floor
from time import monotonic, time
from typing import TYPE_CHECKING, Annotated

from hotplate.cli.terminal import chosen_store, out, print_json, table
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hotplate.bench.planner.prices import Prices
    from hotplate.stores.store import Bill, Estimate, Provisioned, Store

HOUR_S = 3600

MaxRu = Annotated[int | None, Flag("RU/s to spend in Cosmos DB; else ru= of the URL.", at_least=1)]
DryRun = Annotated[bool, Flag("Write nothing; print what would be created, and its cost.")]


def limit_ru(url: str | None, max_ru: int | None) -> str | None:
    """Return the store's URL with the limit; StoreMisused for a store without request units."""
    from hotplate.stores.connect import with_max_ru

    return url if max_ru is None else with_max_ru(chosen_store(url), max_ru)


def billed_hours(began: float, seconds: float) -> int:
    """Return the clock hours that a period touches; each is billed at its highest throughput."""
    return floor((began + seconds) / HOUR_S) - floor(began / HOUR_S) + 1


def hourly_usd(prices: "Prices", provisioned: "Iterable[Provisioned]") -> float:
    """Return the hourly cost of throughput."""
    return sum(prices.ru_hours(one.ru_s, autoscale=one.autoscale) for one in provisioned)


def publish_usd(prices: "Prices", bill: "Bill", request_units: float, began: float, seconds: float) -> float:
    """Return the cost of a publish."""
    if not bill.writing:
        return request_units / 1e6 * (prices.serverless_million_ru.amount if prices.serverless_million_ru else 0.0)
    return hourly_usd(prices, bill.writing) * billed_hours(began, seconds)


def monthly_usd(prices: "Prices", provisioned: "Iterable[Provisioned]") -> float:
    """Return the monthly cost of throughput."""
    from hotplate.bench.planner.prices import HOURS_A_MONTH

    return hourly_usd(prices, provisioned) * HOURS_A_MONTH


def print_estimate(
    found: "Estimate", url: str | None, *, as_json: bool, more: "Mapping[str, object] | None" = None
) -> None:
    """Print the estimate of a publish that begins now, with *more* in the JSON."""
    from hotplate.bench.planner.prices import load
    from hotplate.stores.urls import redacted

    where, began, prices = redacted(chosen_store(url)), time(), load()
    if as_json:
        print_json(_estimate_to_json(found, prices, where, began) | dict(more or {}))
        return
    fits = ", which fit" if found.fits else ""
    out.print(f"dry run, nothing is written: {found.rows:,} rows, {found.payload_bytes / 1e6:,.1f} MB{fits}")
    out.print(f"into {where}")
    for each in found.makes:
        out.print(f"  makes {each}" if not each.startswith("which ") else f"        {each}")
    if found.bill is not None and found.seconds is not None:
        _print_costs(found, found.bill, found.seconds, prices, began)
    for each in found.notes:
        out.print(each)


def _estimate_to_json(found: "Estimate", prices: "Prices", where: str, began: float) -> dict[str, object]:
    facts: dict[str, object] = {
        "dry_run": True,
        "store": where,
        "rows": found.rows,
        "bytes": found.payload_bytes,
        "fits": found.fits,
        "makes": found.makes,
        "notes": found.notes,
    }
    if found.bill is None or found.seconds is None:
        return facts
    return facts | {
        "request_units": found.total_ru,
        "request_units_by": dict(found.request_units),
        "rate_ru": found.bill.rate_ru,
        "seconds": found.seconds,
        "afterwards": found.bill.afterwards,
        "hours_begun": billed_hours(began, found.seconds),
        "usd": round(publish_usd(prices, found.bill, found.total_ru, began, found.seconds), 6),
        "usd_month": round(monthly_usd(prices, found.bill.afterwards), 2),
        "prices": prices.ru_hour.provenance,
    }


def _print_costs(found: "Estimate", bill: "Bill", seconds: float, prices: "Prices", began: float) -> None:
    units = [(what, f"{ru:,.2f}") for what, ru in found.request_units.items()]
    out.print(table(("request units", ""), [*units, ("all", f"{found.total_ru:,.2f}")]))
    out.print(
        f"{found.total_ru / max(found.rows, 1):.2f} RU a row; {format_duration(seconds)} at {bill.rate_ru:,.0f} RU/s"
    )
    usd = publish_usd(prices, bill, found.total_ru, began, seconds)
    if not bill.writing:
        out.print(f"cost: {usd:,.4f} USD for the publish, then 0 without reads")
    else:
        throughput = " + ".join(f"{one.ru_s:,}" for one in bill.writing)
        out.print(f"cost: {usd:,.4f} USD for the publish: {throughput} RU/s for {_hours(began, seconds)}")
        months = [
            (each.what, f"{each.ru_s:,}", "autoscale, at most" * each.autoscale, f"{monthly_usd(prices, [each]):,.2f}")
            for each in bill.afterwards
        ]
        total = f"{monthly_usd(prices, bill.afterwards):,.2f}"
        out.print(table(("from then on", "RU/s", "", "USD/month"), [*months, ("all", "", "", total)]))
    storage_usd, source = prices.storage_gb_month.amount, prices.ru_hour.provenance
    out.print(f"for one region, excluding storage at {storage_usd:g} USD a GB and month; {source}")


class RequestUnitMeter:
    """Observer that counts request units and 429s; prints nothing for stores without request units."""

    def __init__(self) -> None:
        self.request_units = 0.0
        self.throttled = 0
        self._began_at, self._began = monotonic(), time()
        self._bill: Bill | None = None
        self._prices: Prices | None = None

    def charged(self, ru: float) -> None:
        """Implement `Observer`."""
        self.request_units += ru

    def failed(self, kind: str) -> None:
        """Implement `Observer`."""
        self.throttled += kind == "throttled"

    def watch(self, store: "Store") -> None:
        """Start counting for *store*."""
        from hotplate.stores.store import ProvisionedStore

        if isinstance(store, ProvisionedStore):
            from hotplate.bench.planner.prices import load

            self._bill, self._prices = store.bill(), load()
            self._began_at, self._began = monotonic(), time()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._began_at

    @property
    def usd(self) -> float:
        """Cost so far, by started hour or by request unit."""
        if self._bill is None or self._prices is None:
            return 0.0
        return publish_usd(self._prices, self._bill, self.request_units, self._began, self.seconds)

    def progress(self) -> str:
        """Return rate and cost so far, for a progress bar."""
        if self._bill is None:
            return ""
        return f"{self.request_units / max(self.seconds, 1.0):,.0f} RU/s, {self.usd:,.3f} USD"

    def to_json(self) -> dict[str, object]:
        """Return the totals for `--json`."""
        if self._bill is None:
            return {}
        return {
            "spent": {
                "request_units": round(self.request_units, 2),
                "throttled": self.throttled,
                "seconds": round(self.seconds, 3),
                "usd": round(self.usd, 6),
                "hours_begun": billed_hours(self._began, self.seconds),
            }
        }

    def print_totals(self, rows: int) -> None:
        """Print the totals, and the charge of a row."""
        if self._bill is None:
            return
        paid = _hours(self._began, self.seconds) if self._bill.writing else "serverless"
        out.print(
            f"{self.request_units:,.0f} RU, {self.request_units / max(rows, 1):.2f} for each row, read back once; "
            f"{self.throttled:,} refused (429); {self.usd:,.4f} USD, {paid}"
        )


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} minutes" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:,.1f} hours"


def _hours(began: float, seconds: float) -> str:
    hours = billed_hours(began, seconds)
    return f"{hours} hour{'s' * (hours > 1)} begun"
