"""What Microsoft published of the reference architecture, and what follows from it."""

from dataclasses import dataclass

from bench.planner.demand import predict_ru
from stores.cosmos.charges import Charges
from stores.cosmos.throughput import MANUAL_MIN, MANUAL_STEP
from stores.prices import HOURS_A_MONTH, Prices

SOURCE = "https://learn.microsoft.com/azure/architecture/ai-ml/architecture/real-time-recommendation"
DATE = "2018-12-12"
USERS = 200
MEDIAN_MS = 60.0
RATE = 180.0
RU = 11_000
MACHINES = "12 vCPU in 3 nodes"

THINK_S = round(USERS / RATE - MEDIAN_MS / 1000, 2)
"""The pause that makes 200 users who wait 60 ms send 180 requests/s, by Little's law: inferred, not published."""

UTILISATION = 0.7
"""The share of its RU/s that a container may use in an hour's mean, as the planner assumes."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the published rate takes of Cosmos DB, beside what was provisioned for it."""

    read_ru: float
    used_ru: float
    needed_ru: int
    provisioned_month_usd: float
    needed_month_usd: float
    price: str


def needs(charges: Charges, item_bytes: float, prices: Prices) -> Needs:
    """Work out what 180 reads a second of items of *item_bytes*, as stored, take."""
    used_ru = predict_ru(charges, RATE, item_bytes)
    steps = -(-used_ru / UTILISATION // MANUAL_STEP)
    needed_ru = max(MANUAL_MIN, int(steps) * MANUAL_STEP)
    return Needs(
        read_ru=charges.read(round(item_bytes)),
        used_ru=used_ru,
        needed_ru=needed_ru,
        provisioned_month_usd=prices.ru_hours(RU * HOURS_A_MONTH),
        needed_month_usd=prices.ru_hours(needed_ru * HOURS_A_MONTH),
        price=prices.ru_hour.provenance,
    )
