"""What each operation costs in request units, by the coefficients of one file with a source for each.

`charges.toml` next to this module is that file; users put their own measurements in its place.
"""

import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stores.errors import StoreMisused

OURS = Path(__file__).with_name("charges.toml")
KB = 1024

# What the service adds to each item (_rid, _self, _etag, _ts, _attachments), and is assumed to charge for.
SYSTEM_BYTES = 205


@dataclass(frozen=True, slots=True)
class Charges:
    """The coefficients; sizes are bytes as stored, results are RU rounded to hundredths."""

    read_points: tuple[tuple[float, float], ...]
    strong_factor: float
    missing: float
    write_points: tuple[tuple[float, float], ...]
    replace_share: float
    """Of what creating both items would cost, terms aside."""

    term: float
    patch_operation: float
    refused_share: float
    query_base: float
    item_share: float
    scan_share: float
    counted: float
    metadata_read: float
    metadata_write: float
    throttled: float
    system_properties: bool

    def read(self, size: int, *, strong: bool = False) -> float:
        """Return the charge of a point read."""
        return _read(self, size, strong)

    def not_found(self, *, strong: bool) -> float:
        """Return the charge of a point read that finds nothing."""
        return round(self.missing * (self.strong_factor if strong else 1), 2)

    def create(self, size: int, terms: int) -> float:
        """Return the charge of writing a new item with so many indexed terms."""
        return round(_between(self.write_points, size) + self.term * terms, 2)

    def delete(self, size: int, terms: int) -> float:
        """Return the charge of deleting an item: what creating it cost."""
        return self.create(size, terms)

    def replace(self, before: int, after: int, removed_terms: int, added_terms: int) -> float:
        """Return the charge of putting an item in the place of another; terms that stay cost nothing."""
        both = self.create(before, 0) + self.create(after, 0)
        return round(self.replace_share * both + self.term * (removed_terms + added_terms), 2)

    def patch(self, before: int, after: int, removed_terms: int, added_terms: int, operations: int) -> float:
        """Return the charge of a replace, and of each operation that made it."""
        replaced = self.replace(before, after, removed_terms, added_terms)
        return round(replaced + self.patch_operation * operations, 2)

    def refused_write(self, size: int) -> float:
        """Return the charge of a write whose condition did not hold."""
        return round(self.refused_share * self.read(size), 2)

    def feed(self, sizes: Sequence[int], *, strong: bool = False) -> float:
        """Return the charge of reading items one after the other."""
        return round(sum(self.read(size, strong=strong) for size in sizes), 2)

    def query(
        self, sizes: Sequence[int], counted: int = 0, *, scanned: Sequence[int] = (), strong: bool = False
    ) -> float:
        """Return the charge of a query on one partition that returned items of *sizes*, or only counted some.

        *scanned* are the sizes of those that it loaded without returning them, because no index served its condition.
        """
        factor = self.strong_factor if strong else 1
        own = self.query_base * factor + self.counted * counted * factor
        read = self.item_share * self.feed(sizes, strong=strong) + self.scan_share * self.feed(scanned, strong=strong)
        return round(own + read, 2)


@lru_cache(8192)
def _read(charges: Charges, size: int, strong: bool) -> float:  # noqa: FBT001 -- keywords would not be cached alike
    return round(_between(charges.read_points, size) * (charges.strong_factor if strong else 1), 2)


def _between(points: tuple[tuple[float, float], ...], size: int) -> float:
    size_kb = size / KB
    place = bisect_left(points, (size_kb, 0.0))
    if place == 0:
        return points[0][1]
    if place == len(points):
        return points[-1][1] * size_kb / points[-1][0]
    (low_kb, low), (high_kb, high) = points[place - 1], points[place]
    return low + (high - low) * (size_kb - low_kb) / (high_kb - low_kb)


def load(path: Path = OURS) -> Charges:
    """Read the coefficients; StoreMisused names the file and what is wrong with it."""
    try:
        table = tomllib.loads(path.read_text())
        return Charges(
            read_points=_points(table["read"]["points"]),
            strong_factor=float(table["read"]["strong_factor"]),
            missing=float(table["read"]["missing"]),
            write_points=_points(table["write"]["points"]),
            replace_share=float(table["write"].get("replace_share", 1.0)),
            term=float(table["write"]["term"]),
            patch_operation=float(table["write"]["patch_operation"]),
            refused_share=float(table["write"]["refused_share"]),
            query_base=float(table["query"]["base"]),
            item_share=float(table["query"]["item_share"]),
            scan_share=float(table["query"].get("scan_share", 0.0)),
            counted=float(table["query"]["counted"]),
            metadata_read=float(table["metadata"]["read"]),
            metadata_write=float(table["metadata"]["write"]),
            throttled=float(table["metadata"]["throttled"]),
            system_properties=bool(table["size"]["system_properties"]),
        )
    except OSError as error:
        raise StoreMisused(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise StoreMisused(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise StoreMisused(f"{path}: {error}") from error


def _points(table: list[list[float]]) -> tuple[tuple[float, float], ...]:
    points = tuple((float(size_kb), float(ru)) for size_kb, ru in table)
    if not points or list(points) != sorted(points):
        raise ValueError("points must be pairs of KB and RU in ascending order of KB")
    return points
