"""`--dry-run`: what a publish would make, spend, take and cost, as text or JSON."""

from time import time
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.spending import duration, hourly_usd, hours_begun, publish_usd
from hotplate.cli.terminal import out, print_json, table

if TYPE_CHECKING:
    from stores.forecast import Bill, Forecast
    from stores.prices import Prices

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        envvar="HOTPLATE_DRY_RUN",
        help="Write nothing; say what would be made, how long it takes and what it costs.",
    ),
]


def whole(resume: str | None) -> None:
    """Refuse to say what the rest of a draft would come to: StoreMisused."""
    from stores.errors import StoreMisused

    if resume is not None:
        raise StoreMisused("--dry-run tells of a whole publish, and nothing of a draft; leave --resume out")


def tell(found: "Forecast", url: str | None, *, as_json: bool) -> None:
    """Print a forecast of a publish that would begin now."""
    from stores.connect import default_url
    from stores.prices import load
    from stores.urls import redacted

    where, began = redacted(url or default_url()), time()
    if as_json:
        print_json(to_json(found, load(), where, began))
    else:
        show(found, load(), where, began)


def to_json(found: "Forecast", prices: "Prices", where: str, began: float) -> dict[str, object]:
    """Return a forecast for `--json`; what a store cannot tell is not there."""
    told: dict[str, object] = {
        "dry_run": True,
        "store": where,
        "rows": found.rows,
        "bytes": found.payload_bytes,
        "fits": found.fits,
        "makes": found.makes,
        "notes": found.notes,
    }
    if found.bill is None or found.seconds is None:
        return told
    month = hourly_usd(prices, found.bill.afterwards) * _month()
    return told | {
        "request_units": found.total_ru,
        "request_units_by": dict(found.request_units),
        "rate_ru": found.bill.rate_ru,
        "seconds": found.seconds,
        "afterwards": found.bill.afterwards,
        "hours_begun": hours_begun(began, found.seconds),
        "usd": round(publish_usd(prices, found.bill, found.total_ru, began, found.seconds), 6),
        "usd_month": round(month, 2),
        "prices": prices.ru_hour.provenance,
    }


def show(found: "Forecast", prices: "Prices", where: str, began: float) -> None:
    """Print a forecast for people."""
    fits = ", which fit" if found.fits else ""
    out.print(
        f"dry run, nothing is written: {found.rows:,} rows, {found.payload_bytes / 1e6:,.1f} MB{fits}", markup=False
    )
    out.print(f"into {where}", markup=False)
    for each in found.makes:
        out.print(f"  makes {each}" if not each.startswith("which ") else f"        {each}", markup=False)
    if found.bill is not None and found.seconds is not None:
        _show_spending(found, found.bill, found.seconds, prices, began)
    for each in found.notes:
        out.print(each, markup=False)


def _show_spending(found: "Forecast", bill: "Bill", seconds: float, prices: "Prices", began: float) -> None:
    units = [(what, f"{ru:,.2f}") for what, ru in found.request_units.items()]
    out.print(table(("request units", ""), [*units, ("all", f"{found.total_ru:,.2f}")]))
    out.print(
        f"{found.total_ru / max(found.rows, 1):.2f} RU a row; {duration(seconds)} at {bill.rate_ru:,.0f} RU/s",
        markup=False,
    )
    usd = publish_usd(prices, bill, found.total_ru, began, seconds)
    if not bill.writing:
        out.print(f"cost: {usd:,.4f} USD for the publish, and nothing while nobody reads", markup=False)
    else:
        hours = hours_begun(began, seconds)
        said = " + ".join(f"{one.ru_s:,}" for one in bill.writing)
        out.print(
            f"cost: {usd:,.4f} USD for the publish: {said} RU/s for {hours} hour{'s' * (hours > 1)} begun", markup=False
        )
        months = [
            (
                one.what,
                f"{one.ru_s:,}",
                "autoscale, at most" if one.autoscale else "",
                f"{hourly_usd(prices, [one]) * _month():,.2f}",
            )
            for one in bill.afterwards
        ]
        whole = hourly_usd(prices, bill.afterwards) * _month()
        out.print(table(("from then on", "RU/s", "", "USD/month"), [*months, ("all", "", "", f"{whole:,.2f}")]))
    out.print(
        f"of one region, without storage at {prices.storage_gb_month.usd:g} USD a GB and month; "
        f"{prices.ru_hour.provenance}",
        markup=False,
    )


def _month() -> int:
    from stores.prices import HOURS_A_MONTH

    return HOURS_A_MONTH
