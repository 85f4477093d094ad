"""One level of RU/s, measured: the best rate inside the objective, and whether the level was truly spent by it."""

from dataclasses import dataclass
from typing import Any

from bench.ru.items import Items
from bench.ru.trials import RU, Trial, highest

SIZES_KB = (1, 32, 100)
"""Of the items that are read; the larger ones, which cost the machine less a request unit, where it needs that."""

COUNTS = {1: 500, 32: 60, 100: 60}
SPENT = 0.95
"""The share of a level that must have been spent for it to count as such."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of RU/s with the trials of its search; `skipped` tells of smaller items that could not spend it."""

    ru: int
    items: Items
    read_ru: float
    """Of one read by the documented charges."""

    trials: tuple[Trial, ...]
    limit: str
    skipped: tuple[str, ...]

    @property
    def best(self) -> Trial | None:
        """The best trial inside the objective."""
        return highest(self.trials)

    @property
    def arithmetic(self) -> float:
        """Reads a second that the level pays for."""
        return self.ru / self.read_ru

    @property
    def off(self) -> float | None:
        """By how much the best rate differs from the arithmetic."""
        return None if self.best is None else self.best.rate / self.arithmetic - 1

    @property
    def utilisation(self) -> float | None:
        """RU spent of RU provisioned, at the best rate."""
        return None if self.best is None else self.best.spent_ru / self.ru

    @property
    def spent(self) -> bool:
        """Whether the RU/s ended the search, and the best rate spends them."""
        return self.limit == RU and (self.utilisation or 0.0) >= SPENT

    @property
    def stopped(self) -> bool:
        """Whether somebody ended it early."""
        return any(each.stopped for each in self.trials)

    def to_json(self) -> dict[str, Any]:
        """Give it as plain values."""
        best = self.best
        return {
            "ru": self.ru,
            "item_bytes": self.items.size,
            "partitions": self.items.parts,
            "read_ru": self.read_ru,
            "arithmetic": self.arithmetic,
            "best": best and best.to_json(),
            "off": self.off,
            "utilisation": self.utilisation,
            "per_100_ru": None if best is None else best.rate / self.ru * 100,
            "limit": self.limit,
            "spent": self.spent,
            "skipped": list(self.skipped),
            "trials": [each.to_json() for each in self.trials],
        }
