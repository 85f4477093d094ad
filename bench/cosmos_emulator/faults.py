"""Faults on demand: what the service does on its bad days, at the share and for the time that somebody asked for.

Latencies come from the user's own measurements; none here is shown as Azure's.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.cosmos_emulator.errors import OWNER_NOT_FOUND, RANGE_GONE, THROTTLED, EmulatorMisused, Refused, bad
from bench.cosmos_emulator.messages import Answer, Request

STATUSES = {"throttle": 429, "unavailable": 503, "timeout": 408, "retry-with": 449, "gone": 410, "missing": 404}
KINDS = (*STATUSES, "reset", "region-gone", "slow", "latency")
NUMBERS = {"share": 1.0, "for_s": 1e9, "delay_ms": 0.0, "retry_after_ms": 1000.0}
MOST_FAULTS, MOST_VALUES = 100, 1_000_000
MOST_DELAY_MS = 600_000.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, from its injection to its end."""

    kind: str
    share: float
    until: float
    """Seconds of the emulator's clock."""

    delay_ms: float
    retry_after_ms: float
    region: int | None
    partition: str | None
    operation: str | None
    values_ms: tuple[float, ...]
    """Of `latency`: each answer is delayed by one of them, drawn at random."""

    def hits(self, region: int, operation: str, drawn: float) -> bool:
        """Tell whether a request falls under it; *drawn* is a random number from 0 to 1."""
        if self.region not in (None, region) or self.operation not in (None, operation):
            return False
        return drawn < self.share


class Faults:
    """The faults that are in force; empty unless somebody asks, and then it costs a request nothing."""

    def __init__(self, seed: int = 1) -> None:
        self.told: list[dict[str, Any]] = []
        self.active: list[Fault] = []
        self._random = random.Random(seed)  # noqa: S311 -- a repeatable draw, nothing secret

    def replace(self, told: object, now: float, folder: Path | None = None) -> None:
        """Put *told*, a list of objects, in the place of what was in force; reads files only where *folder* is told."""
        if not isinstance(told, list) or len(told) > MOST_FAULTS:
            raise bad(f"faults are a list of at most {MOST_FAULTS} objects")
        self.active = [_fault(one, now, folder) for one in told]
        self.told = [{name: value for name, value in one.items() if name != "values_ms"} for one in told]

    def read(self, path: Path, now: float) -> None:
        """Begin with the faults of a file, in which `file` names a list of latencies beside it."""
        try:
            self.replace(orjson.loads(path.read_bytes()), now, path.parent)
        except (OSError, orjson.JSONDecodeError, Refused) as error:
            raise EmulatorMisused(f"{path}: {error.message if isinstance(error, Refused) else error}") from error

    def before(self, request: Request, operation: str, now: float) -> Answer | None:
        """Answer in the place of the service, or let the request through."""
        for fault in self.active:
            if now >= fault.until or not fault.hits(request.region, operation, self._random.random()):
                continue
            if fault.kind in ("reset", "region-gone"):
                return Answer(503, reset=True)
            if fault.kind in STATUSES:
                raise _refusal(fault)
        return None

    def delay_s(self, request: Request, operation: str, answer: Answer, now: float) -> float:
        """Return how late an answer shall be."""
        delay_ms = 0.0
        for fault in self.active:
            if fault.kind not in ("slow", "latency") or now >= fault.until:
                continue
            partition = answer.headers.get("x-ms-documentdb-partitionkeyrangeid")
            if fault.partition not in (None, partition):
                continue
            if fault.hits(request.region, operation, self._random.random()):
                delay_ms += self._random.choice(fault.values_ms) if fault.values_ms else fault.delay_ms
        return delay_ms / 1000


def _refusal(fault: Fault) -> Refused:
    substatus = {"throttle": THROTTLED, "gone": RANGE_GONE, "missing": OWNER_NOT_FOUND}.get(fault.kind, 0)
    headers = {"x-ms-retry-after-ms": f"{fault.retry_after_ms:.0f}"} if fault.kind == "throttle" else {}
    return Refused(STATUSES[fault.kind], "an injected fault of the emulation", substatus, headers=headers)


def _fault(told: object, now: float, folder: Path | None) -> Fault:
    if not isinstance(told, dict) or told.get("kind") not in KINDS:
        raise bad(f"each fault has a kind, one of {', '.join(KINDS)}")
    known = {"kind", "region", "partition", "operation", "values_ms", "file", *NUMBERS}
    if unknown := sorted(set(told) - known):
        raise bad(f"a fault has no {unknown[0][:40]}; there are {', '.join(sorted(known))}")
    numbers = {name: _number(told.get(name, usual), name) for name, usual in NUMBERS.items()}
    values = told.get("values_ms", ())
    if "file" in told:
        values = _latencies(told["file"], folder)
    if not isinstance(values, list | tuple) or len(values) > MOST_VALUES:
        raise bad(f"values_ms is a list of at most {MOST_VALUES} numbers")
    if told["kind"] == "latency" and not values:
        raise bad("latency needs values_ms, or in a file of faults the name of a file with one number of ms a line")
    if told.get("partition") is not None and told["kind"] not in ("slow", "latency"):
        raise bad("only slow and latency can be for one partition")
    return Fault(
        told["kind"],
        numbers["share"],
        now + numbers["for_s"],
        min(numbers["delay_ms"], MOST_DELAY_MS),
        numbers["retry_after_ms"],
        _optional(told, "region", int),
        _optional(told, "partition", str),
        _optional(told, "operation", str),
        tuple(min(_number(value, "values_ms"), MOST_DELAY_MS) for value in values),
    )


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise bad(f"{name} must be a number that is not negative")
    return float(value)


def _optional(told: dict[str, Any], name: str, wanted: type) -> Any:  # noqa: ANN401 -- of the type that is wanted
    value = told.get(name)
    if value is not None and type(value) is not wanted:
        raise bad(f"{name} of a fault must be {'a whole number' if wanted is int else 'a string'}")
    return value


def _latencies(name: object, folder: Path | None) -> list[float]:
    if folder is None or not isinstance(name, str):
        raise bad("file is for faults that are read at the start; send values_ms")
    try:
        return [float(line) for line in (folder / name).read_text().split()]
    except ValueError as error:
        raise bad(f"{name}: {error}") from None
