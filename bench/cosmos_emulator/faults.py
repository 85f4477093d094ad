"""Injected faults: what the service does on bad days, for a share of requests and for a time.

Latencies come from the user's own measurements; none here is presented as Azure's.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.cosmos_emulator.errors import (
    OWNER_RESOURCE_NOT_FOUND,
    PARTITION_KEY_RANGE_GONE,
    REQUEST_RATE_TOO_LARGE,
    EmulatorMisused,
    HttpError,
    bad_request,
)
from bench.cosmos_emulator.http import Request, Response

# Status and substatus by kind.
ERRORS = {
    "throttle": (429, REQUEST_RATE_TOO_LARGE),
    "unavailable": (503, 0),
    "timeout": (408, 0),
    "retry-with": (449, 0),
    "gone": (410, PARTITION_KEY_RANGE_GONE),
    "missing": (404, OWNER_RESOURCE_NOT_FOUND),
    "unauthorized": (401, 0),
    "forbidden": (403, 0),
}
RESETS = ("reset", "region-gone")
DELAYS = ("slow", "latency")
KINDS = (*ERRORS, *RESETS, *DELAYS)
NUMBERS = ("share", "for_s", "delay_ms", "retry_after_ms")
TEXTS = ("partition", "operation")
FIELDS = {"kind", "region", "values_ms", "file", *NUMBERS, *TEXTS}
MAX_FAULTS, MAX_VALUES = 100, 1_000_000
MAX_DELAY_MS = 600_000.0
FOREVER_S = 1e9


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, from its injection to its end; most fields are those of the JSON object that describes it."""

    kind: str
    until: float
    """Seconds of the emulator's clock."""

    share: float = 1.0
    delay_ms: float = 0.0
    retry_after_ms: float = 1000.0
    region: int | None = None
    partition: str | None = None
    operation: str | None = None
    values_ms: tuple[float, ...] = ()
    """Of `latency`: each response is delayed by one of them, drawn at random."""

    def affects(self, region: int, operation: str, drawn: float) -> bool:
        """Return whether a request is affected; *drawn* is a random number from 0 to 1."""
        if self.region not in (None, region) or self.operation not in (None, operation):
            return False
        return drawn < self.share


class Faults:
    """The faults that are in force; none cost a request nothing."""

    def __init__(self, seed: int = 1) -> None:
        self.resource: list[dict[str, Any]] = []
        self.active: list[Fault] = []
        self._random = random.Random(seed)  # noqa: S311 -- a repeatable draw, nothing secret

    def replace(self, resource: object, now: float, folder: Path | None = None) -> None:
        """Put a list of objects in force instead of the present faults; files are read only from *folder*."""
        if not isinstance(resource, list) or len(resource) > MAX_FAULTS:
            raise bad_request(f"faults are a list of at most {MAX_FAULTS} objects")
        self.active = [_parse(one, now, folder) for one in resource]
        self.resource = [{name: value for name, value in one.items() if name != "values_ms"} for one in resource]

    def read(self, path: Path, now: float) -> None:
        """Read the faults of a file, in which `file` names a list of latencies beside it."""
        try:
            self.replace(orjson.loads(path.read_bytes()), now, path.parent)
        except (OSError, orjson.JSONDecodeError, HttpError) as error:
            raise EmulatorMisused(f"{path}: {error}") from error

    def before(self, request: Request, operation: str, now: float) -> Response | None:
        """Return or raise the response that is given instead of the service's; None where there is none."""
        for fault in self.active:
            if now >= fault.until or not fault.affects(request.region, operation, self._random.random()):
                continue
            if fault.kind in RESETS:
                return Response(503, reset=True)
            if fault.kind in ERRORS:
                status, substatus = ERRORS[fault.kind]
                is_throttle = fault.kind == "throttle"
                headers = {"x-ms-retry-after-ms": f"{fault.retry_after_ms:.0f}"} if is_throttle else {}
                raise HttpError(status, "an injected fault of the emulation", substatus, headers=headers)
        return None

    def delay_s(self, request: Request, operation: str, response: Response, now: float) -> float:
        """Return by how much a response is delayed."""
        delay_ms = 0.0
        partition = response.headers.get("x-ms-documentdb-partitionkeyrangeid")
        for fault in self.active:
            if fault.kind not in DELAYS or now >= fault.until or fault.partition not in (None, partition):
                continue
            if fault.affects(request.region, operation, self._random.random()):
                delay_ms += self._random.choice(fault.values_ms) if fault.values_ms else fault.delay_ms
        return delay_ms / 1000


def _parse(resource: object, now: float, folder: Path | None) -> Fault:
    if not isinstance(resource, dict) or resource.get("kind") not in KINDS:
        raise bad_request(f"each fault has a kind, one of {', '.join(KINDS)}")
    if unknown := sorted(set(resource) - FIELDS):
        raise bad_request(f"a fault has no {unknown[0][:40]}; there are {', '.join(sorted(FIELDS))}")
    fields: dict[str, Any] = {name: value for name, value in resource.items() if value is not None}
    if "file" in fields:
        fields["values_ms"] = _read_latencies(fields.pop("file"), folder)
    values = fields.get("values_ms", ())
    if not isinstance(values, list | tuple) or len(values) > MAX_VALUES:
        raise bad_request(f"values_ms is a list of at most {MAX_VALUES} numbers")
    _check_types({**fields, "values_ms": values})
    if resource["kind"] == "latency" and not values:
        raise bad_request(
            "latency needs values_ms, or in a file of faults the name of a file with one number of ms a line"
        )
    if "partition" in fields and resource["kind"] not in DELAYS:
        raise bad_request("only slow and latency can be for one partition")
    fields["values_ms"] = tuple(min(value, MAX_DELAY_MS) for value in values)
    fields["delay_ms"] = min(fields.get("delay_ms", 0.0), MAX_DELAY_MS)
    return Fault(until=now + fields.pop("for_s", FOREVER_S), **fields)


def _check_types(fields: dict[str, Any]) -> None:
    numbers = [(name, fields.get(name, 0)) for name in NUMBERS] + [("values_ms", one) for one in fields["values_ms"]]
    for name, number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or number < 0:
            raise bad_request(f"{name} must be a number that is not negative")
    if not all(type(fields.get(name, "")) is str for name in TEXTS) or type(fields.get("region", 0)) is not int:
        raise bad_request("partition and operation of a fault must be strings, and region a whole number")


def _read_latencies(name: object, folder: Path | None) -> list[float]:
    if folder is None or not isinstance(name, str):
        raise bad_request("file is for faults that are read at the start; send values_ms")
    try:
        return [float(line) for line in (folder / name).read_text().split()]
    except ValueError as error:
        raise bad_request(f"{name}: {error}") from None
