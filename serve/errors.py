"""Errors of the service and of its lists.

An operator must correct:

ServiceMisused              options or files that cannot be used
├── KeysUnreadable          a file of keys that cannot be read or parsed
└── InvalidClient           a client with this name or these scopes cannot have a key
EventsFailed                events could not be shipped or read; nothing is lost

Lookups raise, as errors of stores so that callers of the library handle one base class:

StoreError
├── NotReady                no tier serves a release yet
├── StoreMisused
│   └── UnknownList         no served release has a list of this name
├── ReleaseMoved            a tier's release is gone, and another one is followed; handled in `lookups`
└── StoreUnavailable
    ├── StoreDefect         a store raised something other than StoreError
    └── StoreThrottled
        └── FoldInFull      too many visitors wait for a list from item factors
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from hotplate.stores.errors import StoreError, StoreMisused, StoreThrottled, StoreUnavailable

FindingSource = Literal[
    "store", "circuit", "damage", "restored", "release", "erased users", "rows", "missing", "file", "events", "state"
]


class ServiceFinding(NamedTuple):
    """A problem that does not stop the service."""

    source: FindingSource
    sentence: str

    @property
    def is_error(self) -> bool:
        """Whether some or all lists cannot be read."""
        return self.source in {"store", "circuit", "damage", "missing"}


def first_error(findings: Iterable[ServiceFinding]) -> str | None:
    """Return why some or all lists cannot be read; None while all can."""
    return next((finding.sentence for finding in findings if finding.is_error), None)


class ServiceMisused(Exception):
    """Contradicting options, or an unusable file; the service does not start."""


class KeysUnreadable(ServiceMisused):
    """The file of keys is missing, or this version cannot parse it."""


class InvalidClient(ServiceMisused):
    """The name of a client is invalid, or it has no scope, or an unknown one."""


class EventsFailed(Exception):
    """Segments could not be copied or read, at either end."""


class NotReady(StoreError):
    """No tier serves a release yet."""


class UnknownList(StoreMisused):
    """No served release has a list of this name."""


class ReleaseMoved(StoreError):
    """A release is gone, and another one is followed."""


class StoreDefect(StoreUnavailable):
    """A store raised something other than StoreError, its cause, or returned another number of results than keys."""


class FoldInFull(StoreThrottled):
    """Too many visitors wait for a list from item factors."""
