"""The options of each experiment, and parsers of times, rates, shares and URLs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Annotated, Any

from hotplate.bench.errors import BenchMisused
from hotplate.stores import options
from hotplate.stores.options import Argument, Flag, parse_quantity
from hotplate.stores.urls import redacted, scheme_of

USER_PATH = "/v1/recommendations/{key}"
WHEN = "When requests fall due"
WHAT = "What is requested"
HOW = "How it is measured"
THOUSANDS = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
EMULATED_SCHEMES = {"cosmos+http", "cosmos+https"}
# Begins the URL of a store whose lists are read by the vendor's client (`stores.vendor_clients`).
VENDOR = "vendor+"
MAX_POPULAR = 0.01  # highest share of popular lists in a sound run
FIND_MAX_OBJECTIVE = "p99=5ms,errors=0.1%"
MAX_USERS = 1_000_000  # of a store, to request
# Redacting functions of options that may hold secrets.
SECRETS: Mapping[str, Callable[[Any], object]] = {
    "headers": lambda headers: [header.partition(":")[0] for header in headers],
    "urls": lambda urls: [redacted(url) for url in urls],
    "store": redacted,
    "account": redacted,
}


def require_positive(values: Mapping[str, float | None]) -> None:
    """Raise BenchMisused naming the flag unless a number is positive; None is absent."""
    for flag, value in values.items():
        if value is not None and value <= 0:
            raise BenchMisused(f"{flag} must be above zero, and is {value:g}")


def parse_seconds(text: str) -> float:
    """Parse a time in seconds: `5ms`, `30s`, `2`."""
    with _misused():
        return options.parse_seconds(text)


def parse_number(text: str) -> float:
    """Parse a number: `1500`, `1_000`, `1.5k`, `2M`. Raises ValueError."""
    factor = THOUSANDS.get(text[-1:], 1.0)
    return float((text[:-1] if factor > 1 else text).replace("_", "")) * factor


def parse_rate(text: str) -> float:
    """Parse a rate in requests/s: `2000`, `2k`."""
    try:
        rate = parse_number(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < inf:  # nor NaN
        raise BenchMisused(f"{text!r} is not a rate such as 500 or 2k")
    return rate


def parse_share(text: str) -> float:
    """Parse a share: `0.1%`, `0.001`."""
    with _misused():
        share = parse_quantity(text, {"%": 0.01, "": 1.0}, "a share such as 0.1% or 0.001")
    if share > 1:
        raise BenchMisused(f"{text!r} is more than the whole")
    return share


def store_url(url: str) -> str:
    """Return the URL of the store itself, whoever reads its lists."""
    return url.removeprefix(VENDOR)


def is_emulated(url: str) -> bool:
    """Return whether a store's URL names an emulator."""
    return scheme_of(store_url(url)) in EMULATED_SCHEMES


@contextmanager
def _misused() -> Iterator[None]:
    """Raise a ValueError of the block as BenchMisused."""
    try:
        yield
    except ValueError as error:
        raise BenchMisused(str(error)) from None


class Options:
    """The options of an experiment, unparsed."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the options that are set as JSON; SECRETS has a function for each that may hold a password."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # a dataclass
        values |= {name: hide(values[name]) for name, hide in SECRETS.items() if values.get(name)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions(Options):
    """Options of `bench http`."""

    url: Annotated[str, Argument("The service, as http://HOST:PORT.", "URL")]
    rate: Annotated[str, Flag("Requests/s, as 500 or 2k.", WHEN, metavar="RATE")] = "1k"
    poisson: Annotated[bool, Flag("Send requests at random times, instead of at equal intervals.", WHEN)] = False
    duration: Annotated[str, Flag("The duration of one round.", WHEN, is_time=True)] = "10s"
    users: Annotated[int | None, Flag("Request the lists of users 0 … N-1.", WHAT)] = None
    keys_file: Annotated[Path | None, Flag("Request the users in this file, one a line.", WHAT)] = None
    store: Annotated[
        str | None,
        Flag(
            f"The store behind the service: its users, the first {MAX_USERS:,}, are requested, and responses compared.",
            WHAT,
            metavar="URL",
        ),
    ] = None
    zipf: Annotated[float | None, Flag("Draw users by a Zipf law of this exponent, as 0.99.", WHAT)] = None
    unknown: Annotated[str, Flag("The share of requests for unknown users, as 5%.", WHAT, metavar="SHARE")] = "0%"
    path: Annotated[str, Flag("The path to GET; {key} stands for a user.", WHAT, metavar="PATH")] = USER_PATH
    headers: Annotated[
        tuple[str, ...], Flag("Send this header; repeatable.", WHAT, "header", metavar="NAME:VALUE")
    ] = ()
    batch: Annotated[
        str | None,
        Flag("POST batches of these sizes, as 50,200,1000,2000, up to 20 at a time.", WHAT, metavar="SIZE,…"),
    ] = None
    score: Annotated[bool, Flag("With --batch: POST to /score, as Stream Analytics jobs do.", WHAT)] = False
    allow_popular: Annotated[
        str | None,
        Flag("The accepted share of popular lists, besides that of --unknown; by default 1%.", WHAT, metavar="SHARE"),
    ] = None
    find_max: Annotated[bool, Flag("Search for the highest rate that meets --slo, beginning with --rate.", HOW)] = False
    slo: Annotated[
        str | None,
        Flag(
            f"The objective, as p99=5ms,errors=0.1%; by default errors=0.1%, with --find-max {FIND_MAX_OBJECTIVE}.",
            HOW,
            metavar="FIGURE=BOUND,…",
        ),
    ] = None
    repeat: Annotated[int, Flag("The number of rounds; comparisons need 5.", HOW)] = 1
    warmup: Annotated[str, Flag("Load before the first round, not counted.", HOW, is_time=True)] = "2s"
    connections: Annotated[int, Flag("The maximum of requests in flight.", HOW)] = 64
    timeout: Annotated[
        str, Flag("A request without an answer fails this long after it was due.", HOW, is_time=True)
    ] = "5s"


# Ours: Azure promises a p99 below 10 ms for direct connectivity only, and nothing for the gateway that we use.
ASSUMED_LATENCY = "p50=4ms,p99=10ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoresOptions(Options):
    """Options of `bench stores`."""

    urls: Annotated[
        tuple[str, ...],
        Argument("Stores to compare; else files, a redis-server and an emulated Cosmos DB.", "URL"),
    ] = ()
    rate: Annotated[
        str, Flag("Requests/s through each service, as 2k, which all must serve.", WHEN, metavar="RATE")
    ] = "800"
    duration: Annotated[str, Flag("The duration of a store's reads in a round.", WHEN, is_time=True)] = "1s"
    users: Annotated[int, Flag("The number of users: the first of the release, or generated ones.", WHAT)] = 5_000
    zipf: Annotated[float | None, Flag("Draw users by a Zipf law of this exponent, as 0.99.", WHAT)] = None
    latency: Annotated[str, Flag("Without URLs: the assumed latency of Cosmos DB.", WHAT, metavar="LATENCY")] = (
        ASSUMED_LATENCY
    )
    repeat: Annotated[
        int | None, Flag("The number of rounds; by default as many as take about 2 minutes. Verdicts need 5.", HOW)
    ] = None
    warmup: Annotated[str, Flag("Uncounted load before the first round.", HOW, is_time=True)] = "2s"
    cpu_hour: Annotated[
        float | None,
        Flag("The price of an hour of CPU in USD; by default that of our price list.", HOW, metavar="USD"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOptions(Options):
    """Options of `bench reference`."""

    account: Annotated[
        str | None,
        Flag(
            "A Cosmos DB with a live release, as cosmos://ACCOUNT/DATABASE; by default an emulated one.",
            WHAT,
            metavar="URL",
        ),
    ] = None
    latency: Annotated[str, Flag("Without --account: the assumed latency of Cosmos DB.", WHAT, metavar="LATENCY")] = (
        ASSUMED_LATENCY
    )
    duration: Annotated[str, Flag("The duration of the load.", HOW, is_time=True)] = "60s"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions(Options):
    """Options of `bench ru`."""

    account: Annotated[
        str | None,
        Flag(
            "Measure this account, as cosmos://ACCOUNT/DATABASE, in a temporary database; by default an emulator.",
            WHAT,
            metavar="URL",
            env=False,  # no account is measured by accident
        ),
    ] = None
    levels: Annotated[
        str, Flag("The levels of RU/s; by default 400,1k,4k,10k,11k, or from 2k for autoscale.", WHAT, metavar="RU/S,…")
    ] = ""
    autoscale: Annotated[bool, Flag("Take the levels as maxima of autoscale, in steps of 1,000 RU/s.", WHAT)] = False
    item_kb: Annotated[str, Flag("The stored sizes of lists in KB, as 1,4,16.", WHAT, metavar="KB,…")] = "1"
    latency: Annotated[str, Flag("The assumed latency of the emulator.", HOW, metavar="LATENCY")] = ASSUMED_LATENCY
    duration: Annotated[
        str, Flag("The counted time of a trial at 90 and 110 % load; others are shorter.", HOW, is_time=True)
    ] = "6s"
    yes: Annotated[bool, Flag("Spend the money without asking first.", HOW, env=False)] = False
