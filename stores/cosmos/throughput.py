"""Throughput of a container: manual or autoscale, how many physical partitions it takes, and how low it may go.

Sources: https://learn.microsoft.com/azure/cosmos-db/concepts-limits (values, minimum) and
https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices (partitions).
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

PARTITION_RU = 10_000
INITIAL_PARTITION_RU = 6_000
DEFAULT_RU = 400
MANUAL_MIN, MANUAL_STEP = 400, 100
AUTOSCALE_MIN, AUTOSCALE_STEP = 1_000, 1_000
MAX_RU = 1_000_000


@dataclass(frozen=True, slots=True)
class Throughput:
    """RU/s of one container: manual, or the top of an autoscale range that begins at a tenth of it."""

    ru: int
    autoscale: bool = False

    @property
    def initial_partitions(self) -> int:
        """Return how many physical partitions a new container of this throughput has."""
        return ceil(self.ru / (PARTITION_RU if self.autoscale else INITIAL_PARTITION_RU))

    @property
    def partitions_needed(self) -> int:
        """Return how many physical partitions can carry it."""
        return ceil(self.ru / PARTITION_RU)

    def rounded_up(self, ru: int) -> "Throughput":
        """Return *ru* in the steps of this kind, manual or autoscale."""
        step = AUTOSCALE_STEP if self.autoscale else MANUAL_STEP
        return Throughput(ceil(ru / step) * step, self.autoscale)

    def content(self) -> dict[str, object]:
        """Return it as the content of an offer."""
        if self.autoscale:
            return {"offerThroughput": self.ru // 10, "offerAutopilotSettings": {"maxThroughput": self.ru}}
        return {"offerThroughput": self.ru, "offerIsRUPerMinuteThroughputEnabled": False}


class Offer(NamedTuple):
    """The throughput of a container as the service knows it."""

    throughput: Throughput
    minimum_ru: int
    """The least that it can be set to."""

    pending: bool
    """Whether a change is under way."""


def minimum_ru(highest_ru: int, stored_bytes: int, *, autoscale: bool) -> int:
    """Return what a container cannot go below: its highest ever by 100, 1 RU/s per GB, and the least there is."""
    if autoscale:
        needed = max(AUTOSCALE_MIN, highest_ru / 10, stored_bytes / 1000**3 * 10)
        return ceil(needed / AUTOSCALE_STEP) * AUTOSCALE_STEP
    return ceil(max(MANUAL_MIN, highest_ru / 100, stored_bytes / 1000**3) / MANUAL_STEP) * MANUAL_STEP
