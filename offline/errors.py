"""Errors of the offline room.

DataError                the input cannot be used
└── SettingError         an option is invalid
GateFailed               a gate keeps the written lists from going live
"""

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hotplate.stores.publication import WrittenRelease


class DataError(Exception):
    """The input cannot be used."""


class SettingError(DataError):
    """An option is invalid; the message names it and the value."""


class GateFailed(Exception):
    """Gates keep a release from going live; *result* is the release, or a dry run's."""

    def __init__(self, message: str, result: "WrittenRelease") -> None:
        super().__init__(message)
        self.result = result


def require_at_least(name: str, value: int, least: int = 1) -> None:
    """Raise SettingError if *value* is below *least*."""
    if value < least:
        raise SettingError(f"{name} is {value}; it must be at least {least}.")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings; raises SettingError."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not TOML: {error}.") from error
