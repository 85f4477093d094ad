"""What a publish spends while it runs: request units, refusals and money, where a store is paid for."""

from math import floor
from time import monotonic, time
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import err, out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stores.forecast import Bill, Provisioned
    from stores.prices import Prices
    from stores.store import Plan, Store

HOUR_S = 3600
SLOW_S = 600
"""When a publish is slow enough for a word on how it could be faster."""

MaxRu = Annotated[
    int | None,
    typer.Option(
        min=1,
        envvar="HOTPLATE_MAX_RU",
        help="Cosmos DB only: RU/s that may be spent; by default what ru= of the URL gives.",
        show_default=False,
    ),
]


def within(url: str | None, max_ru: int | None) -> str | None:
    """Return the store's URL with what may be spent there; StoreMisused where nothing is paid by request units."""
    from stores.connect import default_url, with_max_ru

    return url if max_ru is None else with_max_ru(url or default_url(), max_ru)


def hours_begun(began: float, seconds: float) -> int:
    """Count the hours of the wall clock that a time reaches into: of each the highest throughput is billed."""
    return floor((began + seconds) / HOUR_S) - floor(began / HOUR_S) + 1


def hourly_usd(prices: "Prices", provisioned: "Iterable[Provisioned]") -> float:
    """Return what an hour of throughput costs."""
    return sum(prices.ru_hours(one.ru_s, autoscale=one.autoscale) for one in provisioned)


def publish_usd(prices: "Prices", bill: "Bill", request_units: float, began: float, seconds: float) -> float:
    """Return what is billed from the beginning to the end of a publish."""
    if not bill.writing:
        return prices.serverless_ru(request_units)
    return hourly_usd(prices, bill.writing) * hours_begun(began, seconds)


class Spending:
    """Counts what a store tells of its attempts; lives as long as one verb."""

    def __init__(self) -> None:
        self.request_units = 0.0
        self.throttled = 0
        self._began_at, self._began = monotonic(), time()
        self._bill: Bill | None = None
        self._prices: Prices | None = None
        self._roughly_ru: Callable[[Plan], float] = lambda _: 0.0

    def charged(self, ru: float) -> None:
        """See `Observer`."""
        self.request_units += ru

    def failed(self, kind: str) -> None:
        """See `Observer`."""
        self.throttled += kind == "throttled"

    def watch(self, store: "Store", plan: "Plan | None" = None, *, quiet: bool = False) -> None:
        """Count what *store* spends from now on; say how long *plan* will take it, where that is long."""
        from stores.store import Billed

        if isinstance(store, Billed):
            from stores.prices import load

            self._bill, self._prices, self._roughly_ru = store.bill(), load(), store.roughly_ru
            self._began_at, self._began = monotonic(), time()
            if plan is not None and not quiet and (sentence := slow(self._bill, store.roughly_ru(plan))):
                err.print(sentence, markup=False)

    @property
    def seconds(self) -> float:
        """Return how long it has been counted."""
        return monotonic() - self._began_at

    @property
    def usd(self) -> float:
        """Return what it has cost so far: each hour that was begun, or each request unit."""
        if self._bill is None or self._prices is None:
            return 0.0
        return publish_usd(self._prices, self._bill, self.request_units, self._began, self.seconds)

    def progress(self) -> str:
        """Say how fast it is spent, and what it has cost, in a few letters; nothing where nothing is paid for."""
        if self._bill is None:
            return ""
        return f"{self.request_units / max(self.seconds, 1.0):,.0f} RU/s, {self.usd:,.3f} USD"

    def to_json(self) -> dict[str, object]:
        """Return the totals for `--json`; none where nothing is paid for."""
        if self._bill is None:
            return {}
        return {
            "spent": {
                "request_units": round(self.request_units, 2),
                "throttled": self.throttled,
                "seconds": round(self.seconds, 3),
                "usd": round(self.usd, 6),
                "hours_begun": hours_begun(self._began, self.seconds),
            }
        }

    def show(self, written: "Plan") -> None:
        """Print the totals, for each row beside the arithmetic; nothing where nothing is paid for."""
        if self._bill is None:
            return
        lists = max(written.rows, 1)
        hours = hours_begun(self._began, self.seconds)
        paid = f"{hours} hour{'s' * (hours > 1)} begun" if self._bill.writing else "serverless"
        out.print(
            f"{self.request_units:,.0f} RU, {self.request_units / lists:.2f} for each row, read back once (the charges "
            f"of its size say {self._roughly_ru(written) / lists:.2f}); {self.throttled:,} refused (429); "
            f"{self.usd:,.4f} USD, {paid}",
            markup=False,
        )


def slow(bill: "Bill", roughly_ru: float) -> str:
    """Say how long a publish will take, and what would make it faster; nothing where it is quick."""
    seconds = roughly_ru / bill.rate_ru
    if seconds < SLOW_S:
        return ""
    return (
        f"at {bill.rate_ru:,.0f} RU/s this takes about {duration(seconds)}; more goes with --max-ru N, and --dry-run "
        f"tells what that costs"
    )


def duration(seconds: float) -> str:
    """Say a time as people do."""
    if seconds < 100:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} minutes" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:,.1f} hours"
