"""Request units (RU) of operations, in which Cosmos DB measures and bills work.

Coefficients and their sources are in `charges.toml`.
"""

import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path

import msgspec

from hotplate.stores.errors import StoreMisused
from hotplate.stores.manifest import SAMPLE_ROWS
from hotplate.stores.store import BATCH_ROWS

OURS = Path(__file__).with_name("charges.toml")
KB = 1024

# Bytes of an item's system properties, assumed to be charged.
SYSTEM_BYTES = 205
# Approximate sizes in bytes: a batch item, each key in it, the catalogue.
BATCH_BYTES = 300
KEY_BYTES = 4
CATALOGUE_BYTES = 1024
# One each for dictionary and manifest.
META_BATCHES = 2

# Numbers of the other requests of a publish.
READS = 30
SWAPS = 5  # of the catalogue
CREATIONS = 3  # of small items
METADATA_READS = 7
METADATA_WRITES = 2

Points = tuple[tuple[float, float], ...]
"""Pairs of a size in KB and its RU, in ascending order; between them, RU are interpolated."""


class Charges(msgspec.Struct, frozen=True):
    """Coefficients, named by section and key; sizes are stored bytes, results RU rounded to hundredths."""

    read_points: Points
    read_strong_factor: float
    read_missing: float
    write_points: Points
    write_term: float
    write_refused_share: float
    query_base: float
    query_item_share: float
    metadata_read: float
    metadata_write: float
    size_system_properties: bool
    write_replace_share: float = 1.0
    """Share of the charge of creating the old and the new item, without terms."""

    query_scan_share: float = 0.0

    def __post_init__(self) -> None:
        numbers = [number for pair in (*self.read_points, *self.write_points) for number in pair]
        numbers += [value for value in msgspec.structs.astuple(self) if isinstance(value, float)]
        if not all(0 <= number < inf for number in numbers):  # nor NaN
            raise ValueError("charges must be finite numbers, 0 or more")
        if not all((self.read_missing, self.read_strong_factor, *(ru for _, ru in self.read_points))):
            raise ValueError("charges of reads must be more than 0")
        for points in (self.read_points, self.write_points):
            if not points or list(points) != sorted(points):
                raise ValueError("points must be pairs of KB and RU in ascending order of KB")

    def read(self, size: int, *, strong: bool = False) -> float:
        """Charge of a point read."""
        return round(_interpolate_ru(self.read_points, size) * (self.read_strong_factor if strong else 1), 2)

    def not_found(self, *, strong: bool) -> float:
        """Charge of reading an absent item."""
        return round(self.read_missing * (self.read_strong_factor if strong else 1), 2)

    def create(self, size: int, terms: int) -> float:
        """Charge of creating an item with *terms* indexed terms."""
        return round(_interpolate_ru(self.write_points, size) + self.write_term * terms, 2)

    def delete(self, size: int, terms: int) -> float:
        """Charge of deleting an item."""
        return self.create(size, terms)

    def replace(self, before: int, after: int, removed_terms: int, added_terms: int) -> float:
        """Charge of replacing an item; unchanged terms are free."""
        both = self.create(before, 0) + self.create(after, 0)
        return round(self.write_replace_share * both + self.write_term * (removed_terms + added_terms), 2)

    def refused_write(self, size: int) -> float:
        """Charge of a write refused by its condition."""
        return round(self.write_refused_share * self.read(size), 2)

    def feed(self, sizes: Sequence[int], *, strong: bool = False) -> float:
        """Charge of reading a feed."""
        return round(sum(self.read(size, strong=strong) for size in sizes), 2)

    def query(self, sizes: Sequence[int], scanned: Sequence[int] = (), *, strong: bool = False) -> float:
        """Charge of a query on one partition.

        *sizes* are those of the returned items, *scanned* those of items that were read, but not returned. A *strong*
        consistency level, which includes bounded staleness, costs more.
        """
        base = self.query_base * (self.read_strong_factor if strong else 1)
        returned = self.feed(sizes, strong=strong)
        skipped = self.feed(scanned, strong=strong)
        return round(base + self.query_item_share * returned + self.query_scan_share * skipped, 2)


def overhead_ru(charges: Charges, rows: int, item_bytes: int) -> float:
    """Return the request units (RU) of a publish besides creating its *rows* and reading all of them back.

    These are: some requests for the catalogue, the container and the draft's state; reads of a sample of the rows,
    whose items have *item_bytes* each; and one item for each batch of rows, with the packed keys that acknowledge them.
    """
    requests_ru = (
        READS * charges.read(0)
        + SWAPS * charges.replace(CATALOGUE_BYTES, CATALOGUE_BYTES, 0, 0)
        + CREATIONS * charges.create(0, 0)
        + METADATA_READS * charges.metadata_read
        + METADATA_WRITES * charges.metadata_write
    )
    checks_ru = min(SAMPLE_ROWS, rows) * charges.read(item_bytes)

    batches = ceil(rows / BATCH_ROWS) + META_BATCHES
    batch_bytes = BATCH_BYTES + KEY_BYTES * rows // batches
    batch_ru = charges.create(batch_bytes, 0) + 2 * charges.read(batch_bytes) + charges.read(0)
    return round(requests_ru + checks_ru + batches * batch_ru, 2)


def _interpolate_ru(points: Points, size: int) -> float:
    """Interpolate the request units (RU) for a *size* in bytes between points, pairs of a size in KB and its RU.

    Below the first point, the RU are those of that point; beyond the last, they grow in proportion to the size.
    """
    size_kb = size / KB
    upper = bisect_left(points, (size_kb, 0.0))
    if upper == 0:
        return points[0][1]
    if upper == len(points):
        last_kb, last_ru = points[-1]
        return last_ru * size_kb / last_kb

    low_kb, low_ru = points[upper - 1]
    high_kb, high_ru = points[upper]
    return low_ru + (high_ru - low_ru) * (size_kb - low_kb) / (high_kb - low_kb)


def load(path: Path = OURS) -> Charges:
    """Read the coefficients from a TOML file; StoreMisused, with its name, if it is invalid.

    A coefficient is named by its section and its key: `points` in the section `read` is `read_points`.
    """
    coefficients = dict[str, object]()
    try:
        for section, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if isinstance(table, dict):
                coefficients |= {f"{section}_{key}": value for key, value in table.items()}
        return msgspec.convert(coefficients, Charges)
    except OSError as error:
        raise StoreMisused(f"{path}: {error.strerror}") from error
    except ValueError as error:  # of TOML or of a coefficient
        raise StoreMisused(f"{path}: {error}") from error
