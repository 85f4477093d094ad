"""What throughput may be asked for, and how many physical partitions it takes.

Sources: https://learn.microsoft.com/azure/cosmos-db/concepts-limits (values, minimum) and
https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices (partitions).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import orjson

from bench.cosmos_emulator.errors import bad

PARTITION_RU = 10_000
RU_AT_BIRTH = 6_000
DEFAULT_RU = 400
MANUAL_MIN, MANUAL_STEP = 400, 100
AUTOSCALE_MIN, AUTOSCALE_STEP = 1_000, 1_000
MAX_RU = 1_000_000
OFFER_HEADER = b"x-ms-offer-throughput"
AUTOSCALE_HEADER = b"x-ms-cosmos-offer-autopilot-settings"


@dataclass(frozen=True, slots=True)
class Throughput:
    """RU/s of one container: manual, or the top of an autoscale range that begins at a tenth of it."""

    ru: int
    autoscale: bool = False

    @property
    def partitions_at_birth(self) -> int:
        """Return how many physical partitions a new container of this throughput has."""
        return ceil(self.ru / (PARTITION_RU if self.autoscale else RU_AT_BIRTH))

    @property
    def partitions_needed(self) -> int:
        """Return how many physical partitions can carry it."""
        return ceil(self.ru / PARTITION_RU)

    def content(self) -> dict[str, object]:
        """Return it as an offer tells it."""
        if self.autoscale:
            return {"offerThroughput": self.ru // 10, "offerAutopilotSettings": {"maxThroughput": self.ru}}
        return {"offerThroughput": self.ru, "offerIsRUPerMinuteThroughputEnabled": False}


def minimum_ru(highest_ru: int, stored_bytes: int, *, autoscale: bool) -> int:
    """Return what a container cannot go below: its highest ever by 100, 1 RU/s per GB, and the least there is."""
    if autoscale:
        needed = max(AUTOSCALE_MIN, highest_ru / 10, stored_bytes / 1000**3 * 10)
        return ceil(needed / AUTOSCALE_STEP) * AUTOSCALE_STEP
    return ceil(max(MANUAL_MIN, highest_ru / 100, stored_bytes / 1000**3) / MANUAL_STEP) * MANUAL_STEP


def asked_at_birth(headers: Mapping[bytes, bytes]) -> Throughput:
    """Read the throughput of a new container from its request's headers; 400 RU/s where nothing is asked for."""
    if settings := headers.get(AUTOSCALE_HEADER):
        return _autoscale(_loaded(settings))
    manual = headers.get(OFFER_HEADER)
    if manual is None:
        return Throughput(DEFAULT_RU)
    if not manual.isdigit():
        raise bad("x-ms-offer-throughput must be a whole number of RU/s")
    return _manual(int(manual))


def asked_of_offer(content: object) -> Throughput:
    """Read the throughput of a replaced offer from its `content`."""
    if not isinstance(content, dict):
        raise bad("an offer needs a content with offerThroughput or offerAutopilotSettings")
    if settings := content.get("offerAutopilotSettings"):
        return _autoscale(settings)
    return _manual(content.get("offerThroughput"))


def _loaded(settings: bytes) -> Any:  # noqa: ANN401 -- JSON; what it is gets looked at by the caller
    try:
        return orjson.loads(settings)
    except orjson.JSONDecodeError:
        raise bad("x-ms-cosmos-offer-autopilot-settings must be JSON") from None


def _manual(ru: object) -> Throughput:
    if type(ru) is not int or not MANUAL_MIN <= ru <= MAX_RU or ru % MANUAL_STEP:
        raise bad(f"throughput must be {MANUAL_MIN} … {MAX_RU} RU/s in steps of {MANUAL_STEP}")
    return Throughput(ru)


def _autoscale(settings: object) -> Throughput:
    ru = settings.get("maxThroughput") if isinstance(settings, dict) else None
    if type(ru) is not int or not AUTOSCALE_MIN <= ru <= MAX_RU or ru % AUTOSCALE_STEP:
        raise bad(f"maxThroughput must be {AUTOSCALE_MIN} … {MAX_RU} RU/s in steps of {AUTOSCALE_STEP}")
    return Throughput(ru, autoscale=True)
