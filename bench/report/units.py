"""Quantities as people write them: `5ms`, `30s`, `2k`, `0.1%`."""

import re

from bench.errors import BenchMisused

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6}
NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(\S*)\s*")


def seconds(text: str) -> float:
    """Read a time; a bare number is seconds."""
    return _read(text, SECONDS | {"": 1.0}, "a time such as 5ms or 30s")


def per_second(text: str) -> float:
    """Read a rate in requests/s: `2000`, `2k`."""
    return _read(text, THOUSANDS, "a rate such as 500 or 2k")


def share(text: str) -> float:
    """Read a part of a whole: `0.1%`, or `0.001`."""
    found = _read(text, {"%": 0.01, "": 1.0}, "a share such as 0.1% or 0.001")
    if found > 1:
        raise BenchMisused(f"{text!r} is more than the whole")
    return found


def told(us: float) -> str:
    """Write microseconds with the unit that reads best."""
    if us < 1000:
        return f"{us:.0f} µs"
    return f"{us / 1000:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def _read(text: str, units: dict[str, float], what: str) -> float:
    found = NUMBER.fullmatch(text)
    if not found or found[2] not in units:
        raise BenchMisused(f"{text!r} is not {what}")
    return float(found[1]) * units[found[2]]
