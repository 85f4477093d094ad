"""A metric that is counted: a row of the table in `metrics`, or of a route."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Labels = tuple[str, ...]
# Placeholder for the tier names.
TIERS = ("TIERS",)
# The log of consumed items, which may be in another Redis than those of the tiers.
CONSUMED_ITEMS = "consumed"
TIERS_AND_CONSUMED = (*TIERS, CONSUMED_ITEMS)


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A row of the table: a counter, or a histogram if it has buckets."""

    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]]
    buckets: tuple[float, ...] = ()
    shown: str = "all"
    """Exported series: `all`, those that `counted`, `none`, or a group of rows with the stores that counted in one."""
    otel: str = ""
    """OpenTelemetry's name and unit, if exported."""

    @property
    def cells(self) -> int:
        """Numbers per series; a histogram adds an overflow bucket and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1

    def series(self, tiers: Sequence[str]) -> Iterator[Labels]:
        """Yield the labels of each series."""
        named = {TIERS: tiers, TIERS_AND_CONSUMED: (*tiers, CONSUMED_ITEMS)}
        return product(*(named.get(values, values) for values in self.labels.values()))
