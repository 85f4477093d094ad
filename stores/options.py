"""Annotations that make a settings field a flag, an environment variable and a key of a pipeline file."""

import re
from collections.abc import Mapping
from typing import NamedTuple

# The panel of options that few users need; it stands last in the help.
RARE = "Rarely needed"
# The default of --budget: for all store reads of one request.
BUDGET_S = 0.05

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
# The grammar of SECONDS for `--help` of verbs with a time.
TIMES_IN_WORDS = "A TIME is 50ms, 30s, 10m, 12h or 7d; a number without a unit is in seconds."
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(\S*)\s*", re.ASCII)


class Flag(NamedTuple):
    """A field given as a flag and, with *env*, as an environment variable: HOTPLATE_, *prefix* and the name.

    *name* defaults to the field's name, *prefix* to that of the verb; *variable* is another variable. A path is one of
    this machine; with *urls*, also a URL of an fsspec file system. With *is_time*, a text is a time of `parse_seconds`,
    and a number is in seconds.
    """

    help: str
    panel: str | None = None
    name: str | None = None
    env: bool = True
    metavar: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    prefix: str | None = None
    variable: str | None = None
    urls: bool = False
    is_time: bool = False
    is_argument: bool = False


def Argument(help: str, metavar: str, *, urls: bool = False) -> Flag:  # noqa: N802 -- as of Flag
    """Declare a field given by position; *urls* as of a Flag."""
    return Flag(help, metavar=metavar, env=False, urls=urls, is_argument=True)


def parse_seconds(text: str) -> float:
    """Parse a time in seconds: `5ms`, `30s`, `2`. Raises ValueError."""
    return parse_quantity(text, SECONDS, "a time such as 50ms, 30s or 10m")


def format_seconds(seconds: float) -> str:
    """Return a time in the largest unit in which it is a whole number: `50ms`, `90s`, `10m`; zero is `0s`."""
    for unit in ("d", "h", "m", "s", "ms"):
        count = seconds / SECONDS[unit]
        if seconds and count == round(count):
            return f"{count:.0f}{unit}"
    return f"{seconds:g}s"


def parse_quantity(text: str, units: Mapping[str, float], what: str) -> float:
    """Parse a number with one of *units*; a ValueError says that the text is not *what*."""
    match = _QUANTITY.fullmatch(text)
    if not match or match[2] not in units:
        raise ValueError(f"{text!r} is not {what}")
    return float(match[1]) * units[match[2]]
