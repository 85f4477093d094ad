"""Latencies and injected faults.

Latencies are assumed. Azure promises a p99 below 10 ms for direct connectivity, and nothing for the gateway:
https://learn.microsoft.com/azure/cosmos-db/monitor-server-side-latency
"""

import random
import re
from collections.abc import Callable
from functools import partial
from math import log
from statistics import NormalDist
from typing import Annotated, Literal

import msgspec

from hotplate.bench.cosmos_emulator.messages import HttpError, HttpResponse, Request, Substatus
from hotplate.bench.errors import BenchMisused

FORM = re.compile(r"p50=(\d+(?:\.\d+)?)(ms|s|us),p99=(\d+(?:\.\d+)?)(ms|s|us)")
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
MAX_LATENCY_S = 60.0

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
SLOW = "slow"
KINDS = (*ERRORS, *RESETS, SLOW)
Number = Annotated[float, msgspec.Meta(ge=0)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=600_000)]


def parse_latency(text: str) -> Callable[[], float]:
    """Parse `--latency`; return a function that draws a random latency in seconds at each call.

    `p50=4ms,p99=10ms` gives a log-normal distribution with these percentiles. Raises BenchMisused.
    """
    match = FORM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise BenchMisused(f"--latency {text!r} is not of the form p50=4ms,p99=10ms")

    p50_s = float(match[1]) * SECONDS[match[2]]
    p99_s = float(match[3]) * SECONDS[match[4]]
    if not 0 < p50_s <= p99_s <= MAX_LATENCY_S:
        raise BenchMisused(f"--latency {text!r}: it needs 0 < p50 <= p99 <= {MAX_LATENCY_S:.0f} s")

    # The logarithm of a latency is normal: p50 is at its mean, p99 some 2.33 deviations above.
    mean = log(p50_s)
    deviation = log(p99_s / p50_s) / NormalDist().inv_cdf(0.99)
    generator = random.Random(1)  # noqa: S311 -- repeatable
    return partial(generator.lognormvariate, mean, deviation)


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault in the JSON of `PUT faults`."""

    kind: Literal[KINDS]  # type: ignore[valid-type]  # the names are listed once
    share: Number = 1.0
    for_s: Number = 1e9
    delay_ms: Delay = 0.0
    retry_after_ms: Number = 1000.0
    region: int | None = None
    partition: str | None = None
    operation: str | None = None

    def affects(self, region: int, operation: str, drawn: float) -> bool:
        """Return whether a request is affected; *drawn* is from 0 to 1."""
        return self.region in (None, region) and self.operation in (None, operation) and drawn < self.share

    def error(self) -> HttpError:
        """Return the error of a fault of ERRORS."""
        status, substatus = ERRORS[self.kind]
        headers = dict[str, str]()
        if status == 429:
            headers["x-ms-retry-after-ms"] = f"{self.retry_after_ms:.0f}"
        return HttpError(status, "an injected fault of the emulation", substatus, headers=headers)

    def delay_s(self, response: HttpResponse) -> float:
        """Return the delay of a response in seconds."""
        partition = response.headers.get("x-ms-documentdb-partitionkeyrangeid")
        is_delayed = self.kind == SLOW and self.partition in (None, partition)
        return self.delay_ms / 1000 if is_delayed else 0.0


class Faults:
    """Active faults."""

    def __init__(self) -> None:
        self.active = list[tuple[float, Fault]]()  # with end times
        self._random = random.Random(1)  # noqa: S311 -- repeatable

    def replace(self, resource: object, now: float) -> None:
        """Replace all faults; raises 400."""
        try:
            faults = msgspec.convert(resource, Annotated[list[Fault], msgspec.Meta(max_length=100)])
        except msgspec.ValidationError as error:
            raise HttpError(400, f"these faults cannot be read: {error}") from None
        self.active = [(now + fault.for_s, fault) for fault in faults]

    def affecting(self, request: Request, operation: str, now: float) -> list[Fault]:
        """Return the faults that affect a request, and drop those that have ended; *now* is by the account's clock."""
        self.active = [(end_s, fault) for end_s, fault in self.active if now < end_s]
        return [fault for _, fault in self.active if fault.affects(request.region, operation, self._random.random())]
