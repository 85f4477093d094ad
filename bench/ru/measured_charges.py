"""`hotplate bench charges`: measures charges, sequentially through azure-cosmos, in a temporary database."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import msgspec
import orjson
from azure.cosmos import ContainerProxy
from azure.cosmos.exceptions import CosmosResourceNotFoundError
from azure.cosmos.http_constants import HttpHeaders

from hotplate.base.report import Column, Report, Row
from hotplate.bench.errors import BenchFailed
from hotplate.bench.measure.experiment import Figure, report_of
from hotplate.bench.measure.statistics import change_of
from hotplate.bench.options import is_emulated
from hotplate.bench.planner.prices import Prices
from hotplate.bench.process import describe
from hotplate.bench.ru.run import database_cost, parse_sizes
from hotplate.bench.ru.sandbox import keyed_address, sandbox
from hotplate.stores.cosmos.charges import KB, SYSTEM_BYTES, Charges
from hotplate.stores.cosmos.url import MANUAL_MIN
from hotplate.stores.urls import redacted

SIZES_KB = (1, 2, 4, 8, 16, 32, 64)
# The median counts.
TIMES = 3
CONTAINER = "items"
DEVIATION = "deviation"


class Charge(NamedTuple):
    """Median charge of an operation, ours, and the difference between the highest and the lowest measured one."""

    operation: str
    size_kb: int
    measured_ru: float
    ours_ru: float
    spread_ru: float = 0.0

    @property
    def deviation(self) -> Row:
        """The relative difference to ours."""
        ratio = self.measured_ru / self.ours_ru
        return Row(value=ratio - 1, note=change_of(ratio))


FIGURES: Sequence[Figure[Charge]] = (
    Figure("charge", "RU", lambda charge: charge.measured_ru, "RU", digits=4),
    Figure("charge by our coefficients", "RU", lambda charge: charge.ours_ru, "by our\ncoefficients", digits=4),
    Figure(DEVIATION, "share", lambda charge: charge.deviation),
)


@dataclass(frozen=True, slots=True)
class ChargesPlan:
    """Validated options: the account and the sizes of items."""

    url: str
    sizes_kb: tuple[int, ...]

    def lines(self, ours: Charges, prices: Prices, regions: int, now: float) -> list[str]:
        """Describe the database that the measurement creates, its cost, and the request units (RU) that it spends.

        The RU are computed by *ours*, the charges that hotplate assumes. *now* is in seconds since 1970.
        """
        sizes = [size_kb * KB for size_kb in self.sizes_kb]
        # Five creates stand for the create, the upsert and the delete of an item: an estimate.
        by_size_ru = sum(ours.create(size, 0) * 5 + ours.read(size) for size in sizes)
        total_ru = TIMES * (by_size_ru + ours.read_missing)
        return [*database_cost(MANUAL_MIN, regions, prices, now, total_ru / MANUAL_MIN), f"some {total_ru:,.0f} RU"]


def plan(url: str, sizes: str = "") -> ChargesPlan:
    """Validate the options. Raises BenchMisused and StoreMisused."""
    keyed_address(url)
    return ChargesPlan(url, parse_sizes(sizes, "--sizes") if sizes else SIZES_KB)


@dataclass(frozen=True, slots=True)
class MeasuredCharges:
    """Measured charges by size; other coefficients in `small`."""

    subject: str
    when: str
    by_size: Sequence[Charge]
    small: Mapping[str, float]
    ours: Charges

    def points(self, operation: str) -> list[tuple[float, float]]:
        """Return pairs of an item's size in KB and the charge of an operation, "read" or a write, in request units.

        Sizes ascend: first those that were measured, then the larger ones of `ours`, the charges that hotplate assumes.
        """
        measured = [
            (float(charge.size_kb), charge.measured_ru) for charge in self.by_size if charge.operation == operation
        ]
        largest_kb, _ = measured[-1]
        ours = self.ours.read_points if operation == "read" else self.ours.write_points
        return measured + [(size_kb, ru) for size_kb, ru in ours if size_kb > largest_kb]

    def to_toml(self) -> str:
        """Return the text of a TOML file for `--charges`, with all coefficients, each marked as measured or as ours.

        A coefficient is named by its section and its key: `read_missing` is `read.missing`. Points are pairs of KB and
        request units.
        """
        largest_kb = max(charge.size_kb for charge in self.by_size)
        beyond = f"measured up to {largest_kb} KB; ours beyond"
        measured: dict[str, tuple[Any, str]] = {name: (ru, "measured") for name, ru in self.small.items()}
        measured |= {"read_points": (self.points("read"), beyond), "write_points": (self.points("create"), beyond)}
        lines = [
            f"# Charges measured on {self.subject}, {self.when}, by `hotplate bench charges`: medians of {TIMES}.",
            "# For hotplate plan --charges and hotplate cosmos-emulator --charges.",
        ]
        for name, ours in sorted(msgspec.structs.asdict(self.ours).items()):
            value, origin = measured.get(name, (ours, "not measured: ours"))
            section, _, key = name.partition("_")
            lines.append(f"{section}.{key} = {json.dumps(value)}  # {origin}")  # JSON is TOML, too
        return "\n".join(lines) + "\n"

    def report(self) -> Report:
        """Return the charges of each operation and size, beside those by our coefficients."""
        measured = report_of("charges", FIGURES, {f"{row.operation}, {row.size_kb} KB": row for row in self.by_size})
        spread_ru = max(charge.spread_ru for charge in self.by_size)
        certainty = f"medians of {TIMES}, which differ by at most {spread_ru:g} RU"
        return replace(
            measured,
            sentence=f"Measured on {self.subject}, {self.when}: {certainty}.",
            columns=(*measured.columns, Column(DEVIATION, "off by", noted=True)),
            notes=tuple(f"{name}: {ru:g}" for name, ru in self.small.items()),
            machine=describe(),
            extra={
                "subject": self.subject,
                "when": self.when,
                "charges": [charge._asdict() for charge in self.by_size],
                "coefficients": dict(self.small),
            },
        )


def measure(planned: ChargesPlan, ours: Charges, on_progress: Callable[[str], None]) -> MeasuredCharges:
    """Measure the request units of operations on items of each size, in a temporary database of an account.

    *ours* has the charges that hotplate assumes, for comparison. Raises BenchFailed and StoreError.
    """
    on_progress("creating a container")
    with sandbox(planned.url, MANUAL_MIN) as account, account.container(CONTAINER, MANUAL_MIN) as container:
        by_size = list[Charge]()
        for size_kb in planned.sizes_kb:
            on_progress(f"items of {size_kb} KB")
            by_size += _by_size(container, ours, size_kb)

        small = {
            "read_missing": median(_charge_of_missing_item(container) for _ in range(TIMES)),
            "write_replace_share": _replace_share(by_size),
        }

    subject = redacted(planned.url) + (" (local emulator, not Azure)" if is_emulated(planned.url) else "")
    return MeasuredCharges(subject, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), by_size, small, ours)


def _by_size(container: ContainerProxy, ours: Charges, size_kb: int) -> Iterator[Charge]:
    """Create, read, upsert and delete TIMES items of a size; yield each operation's median charge in request units.

    *ours* has the charges that hotplate assumes, for comparison. Items have no indexed values.
    """
    size = size_kb * KB
    ours_ru = {
        "create": ours.create(size, 0),
        "read": ours.read(size),
        "upsert": ours.replace(size, size, 0, 0),
        "delete": ours.delete(size, 0),
    }

    measured_ru = {operation: list[float]() for operation in ours_ru}
    for body in _bodies(size_kb, TIMES):
        for operation, request in _requests(container, body).items():
            measured_ru[operation].append(_charge_of(request))

    for operation, charges_ru in measured_ru.items():
        spread_ru = round(max(charges_ru) - min(charges_ru), 2)
        yield Charge(operation, size_kb, median(charges_ru), ours_ru[operation], spread_ru)


def _requests(container: ContainerProxy, body: dict[str, Any]) -> Mapping[str, Callable[..., object]]:
    """Return the requests on one item in their order, by operation; each takes azure-cosmos's `response_hook`."""
    name = body["id"]
    return {
        "create": partial(container.create_item, body),
        "read": partial(container.read_item, name, name),
        "upsert": partial(container.upsert_item, body),
        "delete": partial(container.delete_item, name, name),
    }


def _charge_of(request: Callable[..., object]) -> float:
    """Make a request of azure-cosmos; return its charge."""
    received = list[Mapping[str, Any]]()
    request(response_hook=lambda headers, *_: received.append(headers))
    return _charge(received[-1])


def _charge_of_missing_item(container: ContainerProxy) -> float:
    """Read an item that does not exist; return the charge of the 404 in RU."""
    try:
        container.read_item("absent", "absent")
    except CosmosResourceNotFoundError as error:
        return _charge(error.headers or {})
    raise BenchFailed("the item `absent` exists; use an empty account")


def _charge(headers: Mapping[str, Any]) -> float:
    charge_ru = headers.get(HttpHeaders.RequestCharge)
    if not charge_ru:
        raise BenchFailed("a response has no charge; is this Cosmos DB?")
    return float(charge_ru)


def _bodies(size_kb: int, count: int) -> list[dict[str, Any]]:
    """Return items that take *size_kb* with the system properties."""
    bodies = [{"id": f"{size_kb}k-{number:08d}", "pad": ""} for number in range(count)]
    return [body | {"pad": "x" * (size_kb * KB - SYSTEM_BYTES - len(orjson.dumps(body)))} for body in bodies]


def _replace_share(by_size: Sequence[Charge]) -> float:
    """Return the charge of replacing an item, divided by that of creating both the old and the new one."""
    created_ru = {charge.size_kb: charge.measured_ru for charge in by_size if charge.operation == "create"}
    upserts = (charge for charge in by_size if charge.operation == "upsert")
    return round(median(upsert.measured_ru / (2 * created_ru[upsert.size_kb]) for upsert in upserts), 4)
