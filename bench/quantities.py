"""Parsing of the quantities that options of the bench take: times, rates and shares."""

import re

from hotplate.bench.errors import BenchMisused

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6}
NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(\S*)\s*")


def parse_seconds(text: str) -> float:
    """Read a time; a bare number is seconds."""
    return _parse(text, SECONDS | {"": 1.0}, "a time such as 5ms or 30s")


def parse_rate(text: str) -> float:
    """Read a rate in requests/s: `2000`, `2k`."""
    return _parse(text, THOUSANDS, "a rate such as 500 or 2k")


def parse_share(text: str) -> float:
    """Read a part of a whole: `0.1%`, or `0.001`."""
    share = _parse(text, {"%": 0.01, "": 1.0}, "a share such as 0.1% or 0.001")
    if share > 1:
        raise BenchMisused(f"{text!r} is more than the whole")
    return share


def _parse(text: str, units: dict[str, float], what: str) -> float:
    match = NUMBER.fullmatch(text)
    if not match or match[2] not in units:
        raise BenchMisused(f"{text!r} is not {what}")
    return float(match[1]) * units[match[2]]
