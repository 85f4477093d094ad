"""Injected faults: a share of requests meets what the service does on bad days.

Latencies come from the user's own measurements; none here is presented as Azure's.
"""

import random
from pathlib import Path
from typing import Annotated

import msgspec
import orjson

from hotplate.bench.cosmos_emulator.http import (
    EmulatorMisused,
    HttpError,
    HttpResponse,
    Request,
    Substatus,
    bad_request,
)

# Status and substatus by kind.
ERRORS = {
    "throttle": (429, Substatus.REQUEST_RATE_TOO_LARGE),
    "unavailable": (503, 0),
    "timeout": (408, 0),
    "retry-with": (449, 0),
    "gone": (410, Substatus.PARTITION_KEY_RANGE_GONE),
    "missing": (404, Substatus.OWNER_RESOURCE_NOT_FOUND),
    "unauthorized": (401, 0),
    "forbidden": (403, 0),
}
RESETS = ("reset", "region-gone")
DELAYS = ("slow", "latency")
KINDS = (*ERRORS, *RESETS, *DELAYS)
MAX_FAULTS = 100
MAX_VALUES = 1_000_000
Number = Annotated[float, msgspec.Meta(ge=0)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=600_000)]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault; its fields are those of the JSON object that describes it."""

    kind: str
    share: Number = 1.0
    for_s: Number = 1e9
    delay_ms: Delay = 0.0
    retry_after_ms: Number = 1000.0
    region: int | None = None
    partition: str | None = None
    operation: str | None = None
    values_ms: Annotated[tuple[Delay, ...], msgspec.Meta(max_length=MAX_VALUES)] = ()
    """Of `latency`: each response is delayed by one of them, drawn at random."""

    def __post_init__(self) -> None:
        """Refuse what makes no sense together."""
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        if self.kind == "latency" and not self.values_ms:
            raise ValueError("latency needs values_ms")
        if self.partition is not None and self.kind not in DELAYS:
            raise ValueError("only slow and latency can be for one partition")

    def affects(self, region: int, operation: str, drawn: float) -> bool:
        """Return whether a request is affected; *drawn* is a random number from 0 to 1."""
        if self.region not in (None, region) or self.operation not in (None, operation):
            return False
        return drawn < self.share


class Faults:
    """The faults that are in force; none cost a request nothing."""

    def __init__(self) -> None:
        self.active = list[tuple[float, Fault]]()  # with when each ends, in seconds of the emulator's clock
        self._random = random.Random(1)  # noqa: S311 -- a repeatable draw, nothing secret

    def to_json(self) -> bytes:
        """Return the faults as they were given."""
        return msgspec.json.encode([fault for _, fault in self.active])

    def replace(self, resource: object, now: float) -> None:
        """Put a list of objects in force instead of the present faults."""
        try:
            found = msgspec.convert(resource, Annotated[list[Fault], msgspec.Meta(max_length=MAX_FAULTS)])
        except msgspec.ValidationError as error:
            raise bad_request(f"these faults cannot be read: {error}") from None
        self.active = [(now + fault.for_s, fault) for fault in found]

    def read(self, path: Path, now: float) -> None:
        """Read the faults of a file."""
        try:
            self.replace(orjson.loads(path.read_bytes()), now)
        except (OSError, orjson.JSONDecodeError, HttpError) as error:
            raise EmulatorMisused(f"{path}: {error}") from error

    def before(self, request: Request, operation: str, now: float) -> HttpResponse | None:
        """Return or raise the response that is given instead of the service's; None to let it respond."""
        for until, fault in self.active:
            if now >= until or not fault.affects(request.region, operation, self._random.random()):
                continue
            if fault.kind in RESETS:
                return HttpResponse(503, reset=True)
            if fault.kind in ERRORS:
                status, substatus = ERRORS[fault.kind]
                is_throttle = fault.kind == "throttle"
                headers = {"x-ms-retry-after-ms": f"{fault.retry_after_ms:.0f}"} if is_throttle else {}
                raise HttpError(status, "an injected fault of the emulation", substatus, headers=headers)
        return None

    def delay_s(self, request: Request, operation: str, response: HttpResponse, now: float) -> float:
        """Return by how much a response is delayed."""
        delay_ms = 0.0
        partition = response.headers.get("x-ms-documentdb-partitionkeyrangeid")
        for until, fault in self.active:
            if fault.kind not in DELAYS or now >= until or fault.partition not in (None, partition):
                continue
            if fault.affects(request.region, operation, self._random.random()):
                delay_ms += self._random.choice(fault.values_ms) if fault.values_ms else fault.delay_ms
        return delay_ms / 1000
