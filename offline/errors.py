"""Errors of the offline room.

DataError                the input cannot be used
├── MemoryShortage       the process has too little free memory
└── ModelUnusable        a model has to be trained or copied again
SettingError             an option is invalid
GateFailed               a gate keeps the written lists from going live
"""

import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotplate.stores.publication import WrittenRelease


class DataError(Exception):
    """The input cannot be used."""


class MemoryShortage(DataError):
    """The process has too little free memory, which may change; the message says how much is needed."""


class ModelUnusable(DataError):
    """A model folder is missing, incomplete, damaged or of another format: reading it again would not help."""


class SettingError(Exception):
    """An option is invalid; the message names it and the value."""


class GateFailed(Exception):
    """Gates keep a release from going live; *result* is the release, or a dry run's."""

    def __init__(self, message: str, result: "WrittenRelease") -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type, tuple[str, "WrittenRelease"]]:
        """Pickle both arguments, as a pool of processes does."""
        return type(self), (str(self), self.result)


def why_not_written(error: Exception) -> str:
    """Return why a file could not be written; errors of numpy and polars do not say that the disk is full."""
    cause = error.strerror if isinstance(error, OSError) else None
    return cause or f"the disk is full, or a file size limit is reached (ulimit -f; {error})"


def require_at_least(name: str, value: float, least: float = 1) -> None:
    """Raise SettingError unless *value* is a finite number of *least* or more."""
    if not least <= value < math.inf:
        raise SettingError(f"{name} is {value}; it must be at least {least}.")


def require_between(name: str, value: float, least: float, most: float) -> None:
    """Raise SettingError unless *value* lies between *least* and *most*, or is one of them."""
    if not least <= value <= most:
        raise SettingError(f"{name} is {value}; it must lie between {least} and {most}.")


def require_above_zero(name: str, value: float) -> None:
    """Raise SettingError unless *value* is a finite number above zero."""
    if not 0 < value < math.inf:
        raise SettingError(f"{name} is {value}; it must be above zero.")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings; raises SettingError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not TOML: {error}.") from error
