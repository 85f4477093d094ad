"""What can go wrong offline, each as one sentence for the person who brought the data.

DataError                the input cannot be used
└── SettingError         an option makes no sense, whatever the data are (misuse)
GateFailed               the lists were written, and are not good enough to go live
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotplate.stores.publication import WriteResult


class DataError(Exception):
    """Raised when the input cannot be used; its message says what, where (file, row, column) and what to do."""


class SettingError(DataError):
    """Raised for a filter, event weight or parameter that makes no sense; its message names it and the value."""


class GateFailed(Exception):
    """Raised if gates keep a release from going live; its message says which, with their numbers.

    *result* is what was written and is ready, or would have been, in a dry run.
    """

    def __init__(self, message: str, result: "WriteResult") -> None:
        super().__init__(message)
        self.result = result


def require_at_least(name: str, value: int, least: int = 1) -> None:
    """Raise SettingError if *value*, which is called *name*, is below *least*."""
    if value < least:
        raise SettingError(f"{name} is {value}; it must be at least {least}.")
