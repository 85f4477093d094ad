"""Request units of operations and of a whole publish.

Coefficients and their sources are in `charges.toml`.
"""

import tomllib
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path

import msgspec

from hotplate.stores.cosmos.url import (
    MANUAL_MIN,
    SERVERLESS_RU,
    Address,
    Offer,
    Throughput,
    minimum_ru,
)
from hotplate.stores.errors import StoreMisused
from hotplate.stores.manifest import SAMPLE_ROWS
from hotplate.stores.store import BATCH_ROWS, Bill, Estimate, Plan, Provisioned, PublishCounts

OURS = Path(__file__).with_name("charges.toml")
KB = 1024

# The container of the catalogue.
CONTROL = "hotplate"

# Bytes of an item's system properties, assumed to be charged.
SYSTEM_BYTES = 205
# Approximate sizes: a list of keys, each key in it, the catalogue.
BATCH_BYTES = 300
KEY_BYTES = 4
CATALOGUE_BYTES = 1024
# One each for dictionary and manifest.
META_BATCHES = 2

# Other requests of one publish, from begin to prune, of each release that it erases, and of a first publish: reads,
# swaps of the catalogue, creations of small items, and reads and writes of metadata.
PUBLISH = (24, 3, 3, 7, 1)
ERASED = (2, 2, 0, 0, 1)
FIRST = (0, 0, 0, 0, 1)

WRITING = "writing rows and lists of their keys"
READING = "reading them back"
REST = "the catalogue, the state, containers and the check before it is served"


Points = tuple[tuple[float, float], ...]


class Charges(msgspec.Struct, frozen=True):
    """Coefficients, named by section and key of the file; sizes are stored bytes, results RU rounded to hundredths."""

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
        for points in (self.read_points, self.write_points):
            if not points or list(points) != sorted(points):
                raise ValueError("points must be pairs of KB and RU in ascending order of KB")

    def read(self, size: int, *, strong: bool = False) -> float:
        """Charge of a point read."""
        return _read(self, size, strong)

    def not_found(self, *, strong: bool) -> float:
        """Charge of reading an absent item."""
        return round(self.read_missing * (self.read_strong_factor if strong else 1), 2)

    def create(self, size: int, terms: int) -> float:
        """Charge of creating an item with *terms* indexed terms."""
        return round(_between(self.write_points, size) + self.write_term * terms, 2)

    def delete(self, size: int, terms: int) -> float:
        """Charge of deleting an item, as of creating it."""
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
        """Charge of a query on one partition that returned items.

        *scanned*: sizes of items loaded but not returned, for lack of an index.
        """
        own = self.query_base * (self.read_strong_factor if strong else 1)
        returned, skipped = self.feed(sizes, strong=strong), self.feed(scanned, strong=strong)
        return round(own + self.query_item_share * returned + self.query_scan_share * skipped, 2)


def publish_ru(charges: Charges, counts: PublishCounts, *, first: bool = False) -> dict[str, float]:
    """Return the request units of one publish by purpose; *first*: the store is empty.

    Rows are created and read back. Within 1 % of the emulator's charges.
    """
    rows = counts.sizes.total()
    batch_bytes = BATCH_BYTES + KEY_BYTES * rows // max(counts.batches, 1)
    written = sum(count * charges.create(size, 0) for size, count in counts.sizes.items())
    read = sum(count * charges.read(size) for size, count in counts.sizes.items())
    times = (1, counts.erased, int(first))
    numbers = [
        sum(n * each for n, each in zip(times, one, strict=True)) for one in zip(PUBLISH, ERASED, FIRST, strict=True)
    ]
    swap = charges.replace(CATALOGUE_BYTES, CATALOGUE_BYTES, 0, 0)
    each_ru = (charges.read(0), swap, charges.create(0, 0), charges.metadata_read, charges.metadata_write)
    rest = sum(number * ru for number, ru in zip(numbers, each_ru, strict=True))
    rest += counts.batches * charges.read(0) + min(counts.checked, rows) * read / max(rows, 1)
    return {
        WRITING: round(written + counts.batches * charges.create(batch_bytes, 0), 2),
        READING: round(read + counts.batches * 2 * charges.read(batch_bytes), 2),
        REST: round(rest, 2),
    }


def even_rows(rows: int, item_bytes: int) -> PublishCounts:
    """Counts of a publish of equal rows."""
    return PublishCounts(Counter({item_bytes: rows}), ceil(rows / BATCH_ROWS) + META_BATCHES, SAMPLE_ROWS)


def bill_of(address: Address, stored_bytes: int = 0) -> Bill:
    """Bill of a publish and its release."""
    written = address.writing
    if written is None:
        return Bill(float(address.max_ru or SERVERLESS_RU))
    control = Provisioned("catalogue", MANUAL_MIN)
    kept = minimum_ru(written.ru, stored_bytes, autoscale=written.autoscale)
    live = address.serving(Offer(written, kept, pending=False)) or written
    return Bill(
        float(address.max_ru or written.ru),
        writing=(Provisioned("new release", written.ru, written.autoscale), control),
        afterwards=(
            Provisioned("live release", live.ru, live.autoscale),
            Provisioned("release before it, kept", kept, written.autoscale),
            control,
        ),
    )


def estimate_publish(
    address: Address, charges: Charges, plan: Plan, counts: PublishCounts, *, first: bool, live: bool
) -> Estimate:
    """See `ProvisionedStore.estimate`; only rows are paced."""
    bill = bill_of(address, plan.payload_bytes)
    spent = publish_ru(charges, counts, first=first)
    notes = list[str]()
    if not bill.writing:
        notes.append(f"assumed: a serverless container gives {bill.rate_ru:,.0f} RU/s, which is not guaranteed")
    if address.key is None and address.arm is None:
        notes.append(
            "publishing will be refused: Entra ID alone cannot make containers; add resource_group= to the URL"
        )
    if address.partition_warning:
        notes.append(address.partition_warning)
    return Estimate(
        plan.rows,
        plan.payload_bytes,
        fits=True,
        makes=_makes(address, bill, first=first, live=live),
        request_units=spent,
        seconds=round((spent[WRITING] + spent[READING]) / bill.rate_ru, 3),
        bill=bill,
        notes=tuple(notes),
    )


def _makes(address: Address, bill: Bill, *, first: bool, live: bool) -> tuple[str, ...]:
    written = address.writing
    made = list[str]()
    if first:
        control = "serverless" if written is None else Throughput(MANUAL_MIN)
        made.append(f"the database {address.database}, unless it is there")
        made.append(f"the container {CONTROL}, of the catalogue: {control}")
    if written is None:
        return *made, "the container of the release: serverless, nothing indexed"
    partitions = f"{written.initial_partitions} physical partition{'s' * (written.initial_partitions > 1)}"
    made.append(f"the container of the release: {written}, {partitions}, nothing indexed")
    if (then := bill.afterwards[0 if live else 1].ru_s) != written.ru:
        made.append(f"which is scaled to {Throughput(then, written.autoscale)}")
    return tuple(made)


@lru_cache(8192)
def _read(charges: Charges, size: int, strong: bool) -> float:  # noqa: FBT001 -- keywords miss the cache
    return round(_between(charges.read_points, size) * (charges.read_strong_factor if strong else 1), 2)


def _between(points: Points, size: int) -> float:
    size_kb = size / KB
    place = bisect_left(points, (size_kb, 0.0))
    if place == 0:
        return points[0][1]
    if place == len(points):
        return points[-1][1] * size_kb / points[-1][0]
    (low_kb, low), (high_kb, high) = points[place - 1], points[place]
    return low + (high - low) * (size_kb - low_kb) / (high_kb - low_kb)


def load(path: Path = OURS) -> Charges:
    """Read the coefficients; StoreMisused names the file."""
    try:
        sections = {name: table for name, table in tomllib.loads(path.read_text()).items() if isinstance(table, dict)}
        named = {f"{section}_{key}": value for section, table in sections.items() for key, value in table.items()}
        return msgspec.convert(named, Charges)
    except OSError as error:
        raise StoreMisused(f"{path}: {error.strerror}") from error
    except ValueError as error:  # of TOML or of a coefficient
        raise StoreMisused(f"{path}: {error}") from error
