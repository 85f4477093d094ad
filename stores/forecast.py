"""What a publish will come to, said before anything is written: what it makes, spends, takes and is billed for."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Provisioned:
    """Throughput that is paid for by the hour, whether it is used or not."""

    what: str
    ru_s: int
    autoscale: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """What is paid for: throughput by the hour, or, where a store provisions none, each request unit that is used."""

    rate_ru: float
    """What a publish may spend in a second."""

    writing: tuple[Provisioned, ...] = ()
    """By the hour, from a publish's beginning to its end."""

    afterwards: tuple[Provisioned, ...] = ()
    """By the hour, from then on: with one live release, and one that is kept."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one publish will come to, in a store that nobody else writes meanwhile."""

    rows: int
    payload_bytes: int
    """Of keys and values."""

    fits: bool | None = None
    """Whether there is room; None where that cannot be known."""

    makes: tuple[str, ...] = ()
    """What is created or scaled, one sentence each."""

    request_units: Mapping[str, float] = field(default_factory=dict)
    """By what they are spent on."""

    seconds: float | None = None
    """From begin to prune, where nothing but the store's limits takes time."""

    bill: Bill | None = None
    notes: tuple[str, ...] = ()
    """What was assumed, and what could go wrong."""

    @property
    def total_ru(self) -> float:
        """Return all of them, in hundredths as they are charged."""
        return round(sum(self.request_units.values()), 2)
