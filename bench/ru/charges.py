"""An account's charges, measured operation by operation, as a file of coefficients for the planner and the emulator.

A database of our own is made with the least throughput, and dropped at the end. Requests go one after the other; one
that is refused for its rate is sent again. What is not measured keeps our coefficient, and the file says so.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, NamedTuple

import orjson

from hotplate.bench.errors import BenchFailed
from hotplate.bench.planner.prices import Prices
from hotplate.bench.process import is_emulated
from hotplate.bench.ru.run import database_cost, parse_sizes
from hotplate.bench.ru.sandbox import Sandbox, builder, sandbox
from hotplate.stores.cosmos.charges import KB, SYSTEM_BYTES, Charges
from hotplate.stores.cosmos.requests import RequestBuilder, partition_key_header
from hotplate.stores.cosmos.url import MANUAL_MIN, Throughput, parse
from hotplate.stores.urls import redacted

SIZES_KB = (1, 2, 4, 8, 16, 32, 64)
# How often each operation is made; charges vary little, and the median is kept.
TIMES = 3
CONTAINER = "items"
CHARGE = b"x-ms-request-charge"
TOO_MANY_REQUESTS = 429
JSON = b"content-type: application/json\r\n"
UPSERT = JSON + b"prefer: return=minimal\r\nx-ms-documentdb-is-upsert: True\r\n"
# The sections of our file: the names of its coefficients there and here; and the operation that gives the points.
SECTIONS = {
    "read": {"strong_factor": "strong_factor", "missing": "missing"},
    "write": {name: name for name in ("replace_share", "term", "refused_share")},
    "query": {"base": "query_base", "item_share": "item_share", "scan_share": "scan_share", "counted": "counted"},
    "metadata": {"read": "metadata_read", "write": "metadata_write", "throttled": "throttled"},
    "size": {"system_properties": "system_properties"},
}
POINTS = {"read": "read", "write": "create"}
# Makes a signed request.
Build = Callable[[RequestBuilder], bytes]


class Charge(NamedTuple):
    """The charge of one operation on an item, median of some times, and that by our coefficients."""

    operation: str
    size_kb: int
    measured_ru: float
    ours_ru: float

    @property
    def off(self) -> float:
        """By which share the measured one is above ours."""
        return self.measured_ru / self.ours_ru - 1


@dataclass(frozen=True, slots=True)
class ChargesPlan:
    """What is to be measured: the account and the sizes of items, checked."""

    url: str
    sizes_kb: tuple[int, ...]

    def lines(self, ours: Charges, prices: Prices, regions: int, now: float) -> list[str]:
        """Say what it makes, costs and takes if it begins *now*, in seconds since 1970."""
        sizes = [size_kb * KB for size_kb in self.sizes_kb]
        by_size_ru = sum(ours.create(size, 0) * 5 + ours.read(size) for size in sizes)
        total_ru = TIMES * (by_size_ru + ours.missing)
        return [*database_cost(MANUAL_MIN, regions, prices, now, total_ru / MANUAL_MIN), f"some {total_ru:,.0f} RU"]


def plan(url: str, sizes: str = "") -> ChargesPlan:
    """Check what is to be measured. Raises BenchMisused or StoreMisused for what makes no sense."""
    builder(parse(url))  # refuses an account without a key
    return ChargesPlan(url, parse_sizes(sizes, "--sizes") if sizes else SIZES_KB)


@dataclass(frozen=True, slots=True)
class MeasuredCharges:
    """What was measured, where and when; `small` are coefficients by name."""

    subject: str
    when: str
    by_size: Sequence[Charge]
    small: Mapping[str, float]
    ours: Charges

    def points(self, operation: str) -> list[tuple[float, float]]:
        """Return the measured charges by KB, and ours of larger items, as those are not measured."""
        found = [(float(one.size_kb), one.measured_ru) for one in self.by_size if one.operation == operation]
        known = self.ours.read_points if operation == "read" else self.ours.write_points
        return found + [point for point in known if point[0] > found[-1][0]]

    def to_toml(self) -> str:
        """Write them in the form of our own file, each coefficient marked as measured or as ours."""
        head = f"# Charges measured on {self.subject}, {self.when}, by `hotplate bench charges`: medians of {TIMES}."
        lines = [head, "# For hotplate plan --charges and hotplate cosmos-emulator --charges."]
        for section, coefficients in SECTIONS.items():
            lines += ["", f"[{section}]"]
            if operation := POINTS.get(section):
                points = ", ".join(f"[{size_kb:g}, {ru:.2f}]" for size_kb, ru in self.points(operation))
                largest = max(one.size_kb for one in self.by_size)
                lines += [f"# measured up to {largest} KB; ours beyond", f"points = [{points}]"]
            for shown, name in coefficients.items():
                found, ours = self.small.get(name), getattr(self.ours, name)
                value = str(ours).lower() if isinstance(ours, bool) else f"{ours if found is None else found:g}"
                lines.append(f"{shown} = {value}  # {'not measured: ours' if found is None else 'measured'}")
        return "\n".join([*lines, ""])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        by_size = [one._asdict() for one in self.by_size]
        return {"subject": self.subject, "when": self.when, "charges": by_size, "coefficients": dict(self.small)}


def measure(planned: ChargesPlan, ours: Charges, on_progress: Callable[[str], None]) -> MeasuredCharges:
    """Make a database, measure there, and drop it, also after Ctrl-C. Raises BenchFailed and StoreError."""
    with sandbox(planned.url, MANUAL_MIN) as account:
        on_progress("creating a container")
        account.create(CONTAINER, Throughput(MANUAL_MIN))
        running = _Measurement(account, ours)
        by_size = list[Charge]()
        for size_kb in planned.sizes_kb:
            on_progress(f"items of {size_kb} KB")
            by_size += running.by_size(size_kb)
        small = {"missing": running.missing(), "replace_share": _replace_share(by_size)}
    subject = redacted(planned.url) + (" (local emulator, not Azure)" if is_emulated(planned.url) else "")
    return MeasuredCharges(subject, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), by_size, small, ours)


class _Measurement:
    """One container while it is measured."""

    def __init__(self, account: Sandbox, ours: Charges) -> None:
        self._account = account
        self._link = f"dbs/{account.address.database}/colls/{CONTAINER}"
        self._ours = ours

    def by_size(self, size_kb: int) -> Iterator[Charge]:
        """Create, read, replace and delete items of one size."""
        ours, size = self._ours, size_kb * KB
        found = dict[str, list[float]]()
        for body in _bodies(size_kb, TIMES):
            name, raw = body["id"], orjson.dumps(body)
            requests = {
                "create": self._request("POST", name, JSON, raw),
                "read": _read(name),
                "upsert": self._request("POST", name, UPSERT, raw),
                "delete": self._request("DELETE", name),
            }
            for operation, request in requests.items():
                found.setdefault(operation, []).append(self._charge(request, operation))
        known = {
            "create": ours.create(size, 0),
            "read": ours.read(size),
            "upsert": ours.replace(size, size, 0, 0),
            "delete": ours.delete(size, 0),
        }
        for operation, charges in found.items():
            yield Charge(operation, size_kb, median(charges), known[operation])

    def missing(self) -> float:
        """Return the charge of a read that finds nothing."""
        return median(self._charge(_read("absent"), "read", 404) for _ in range(TIMES))

    def _request(self, verb: str, name: str, headers: bytes = b"", body: bytes = b"") -> Build:
        link = self._link if verb == "POST" else f"{self._link}/docs/{name}"
        path = f"{self._link}/docs/" if verb == "POST" else f"{link}/"
        headers = partition_key_header(name) + headers
        return lambda signed: signed.build(verb, "docs", link, path, headers=headers, body=body)

    def _charge(self, request: Build, what: str, expected: int | None = None) -> float:
        """Send a request until it is not refused for its rate, and return its charge.

        BenchFailed, with what was answered, if that is not as expected.
        """
        while (response := self._account.send(request)).status == TOO_MANY_REQUESTS:
            time.sleep(int(response.header(b"x-ms-retry-after-ms") or b"1000") / 1000)
        if (response.status >= 300) if expected is None else (response.status != expected):
            sentence = response.body.decode(errors="replace")[:300].partition("\n")[0]
            raise BenchFailed(f"{what} was answered with {response.status}: {sentence}")
        if not (found := response.header(CHARGE)):
            raise BenchFailed("a response names no charge; is this Cosmos DB?")
        return float(found)


def _read(name: str) -> Build:
    return lambda signed: signed.point_read(CONTAINER, name)


def _bodies(size_kb: int, count: int) -> list[dict[str, Any]]:
    bodies = [{"id": f"{size_kb}k-{number:08d}", "pad": ""} for number in range(count)]
    return [body | {"pad": "x" * (size_kb * KB - SYSTEM_BYTES - len(orjson.dumps(body)))} for body in bodies]


def _replace_share(by_size: Sequence[Charge]) -> float:
    """Return the charge of replacing an item by that of creating two, median of the sizes."""
    created = {one.size_kb: one.measured_ru for one in by_size if one.operation == "create"}
    upserts = (one for one in by_size if one.operation == "upsert")
    return round(median(one.measured_ru / (2 * created[one.size_kb]) for one in upserts), 4)
