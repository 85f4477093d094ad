"""What can go wrong offline, each as one sentence for the person who brought the data.

DataError                the input cannot be used
└── SettingError         an option makes no sense, whatever the data are (misuse)
"""


class DataError(Exception):
    """Raised when the input cannot be used; its message says what, where (file, row, column) and what to do."""


class SettingError(DataError):
    """Raised for a filter, event weight or parameter that makes no sense; its message names it and the value."""


def require_at_least(name: str, value: int, least: int = 1) -> None:
    """Raise SettingError where *value*, which is called *name*, is below *least*."""
    if value < least:
        raise SettingError(f"{name} is {value}; it must be at least {least}.")
