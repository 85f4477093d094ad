"""What Microsoft published of the reference architecture, and what follows from it, beside what the stores did here."""

from collections.abc import Mapping
from typing import NamedTuple

from hotplate.bench.options import PUBLISHED_MEDIAN_MS, PUBLISHED_RATE, PUBLISHED_RU, PUBLISHED_USERS, THINK_S
from hotplate.bench.planner.figures import round_up
from hotplate.bench.planner.prices import HOURS_A_MONTH, Prices
from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.cosmos.url import MANUAL_MIN, MANUAL_STEP

SOURCE = "https://learn.microsoft.com/azure/architecture/ai-ml/architecture/real-time-recommendation"
DATE = "2018-12-12"
COLUMN = "published, 2018"
NOT_PUBLISHED = "not published"

# The share of its RU/s that a container may use in an hour's mean, as the planner assumes.
UTILISATION = 0.7

METHOD = f"""
The published figures are of {DATE}: {SOURCE}. They were measured in Azure, by others, with another service; ours are of
one machine. They stand side by side to be read, not to be subtracted.

{PUBLISHED_USERS} users who wait for each response and then pause send what their pause lets them send: with
{THINK_S:g} s (inferred from the published rate and median; ours is drawn anew each time, from half to one and a half of
it) no service could answer more than {PUBLISHED_USERS / THINK_S:.0f} requests/s to them. So {PUBLISHED_RATE:g}
requests/s was the load of the test, and the generator's limit, not what the service could do.
"""


class Needs(NamedTuple):
    """The RU/s that a rate of reads needs of Cosmos DB, and what a month of them, and of what is provisioned, costs."""

    read_ru: float
    used_ru: float
    needed_ru: int
    needed_month_usd: float
    provisioned_month_usd: float


def needs(charges: Charges, prices: Prices, item_bytes: float, rate: float, provisioned_ru: int) -> Needs:
    """Work out what *rate* reads a second of items of *item_bytes*, as stored, need."""
    read_ru = charges.read(round(item_bytes))
    needed_ru = max(MANUAL_MIN, round_up(rate * read_ru / UTILISATION, MANUAL_STEP))
    months_usd = (prices.ru_hours(ru * HOURS_A_MONTH) for ru in (needed_ru, provisioned_ru))
    return Needs(read_ru, rate * read_ru, needed_ru, *months_usd)


def published_cells(charges: Charges, prices: Prices, item_bytes: float) -> Mapping[tuple[str, str], str]:
    """Return the cells of the published column, by group (up to its colon) and name; what is inferred says so."""
    needed = needs(charges, prices, item_bytes, PUBLISHED_RATE, PUBLISHED_RU)
    return {
        ("Closed loop", "good answers/s"): f"{PUBLISHED_RATE:g}",
        ("Closed loop", "p50"): f"≈ {PUBLISHED_MEDIAN_MS:g} ms",
        ("Closed loop", "service: share of a core"): "12 vCPU in 3 nodes",
        ("Request units", "provisioned"): f"{PUBLISHED_RU:,} RU/s",
        ("Request units", "used in the closed loop"): f"{needed.used_ru:,.0f} RU/s, inferred",
        ("Request units", "of what was provisioned"): f"{needed.used_ru / PUBLISHED_RU:.1%}, inferred",
        ("Request units", f"what {PUBLISHED_RATE:g} requests/s need"): f"{needed.needed_ru:,} RU/s, inferred",
        ("Request units", "a month of it, at the list price"): format_month(needed),
    }


def format_month(needed: Needs) -> str:
    """Write what a month costs, beside what it costs as provisioned."""
    return f"{needed.needed_month_usd:,.0f} instead of {needed.provisioned_month_usd:,.0f} USD"
