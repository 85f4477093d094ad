"""Errors of stores; messages say what to do and hold no secrets.

StoreError
├── StoreUnavailable
│   ├── AccessDenied
│   ├── StoreThrottled
│   ├── PartUnavailable
│   │   └── PartLost
│   ├── StoreClosed
│   └── NotSent
├── StoreFull
├── StoreMisused
├── CatalogueUnreadable
├── WrittenByNewer
├── ReleaseNotFound
│   └── PartLost
├── ReleaseConflict
│   └── HeldBack
│       ├── CanaryRunning
│       ├── ReleaseWithdrawn
│       └── RefusedByGates
└── ReleaseCorrupt
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hotplate.base.extras import install_hint

HEAL = "`hotplate releases repair` heals it from another store; or publish again"


class StoreError(Exception):
    """Base class; the message is one sentence without secrets."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the text and the attributes, which are loaded without a call of `__init__`."""
        return type(self).__new__, (type(self), *self.args), self.__dict__


class StoreUnavailable(StoreError):
    """The store cannot be reached; if `permanent`, a retry cannot help."""

    permanent = False


class AccessDenied(StoreUnavailable):
    """The store does not accept this user or its password, or the user lacks a right."""

    permanent = True


class StoreThrottled(StoreUnavailable):
    """The store refuses requests without processing them; retry after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PartUnavailable(StoreUnavailable):
    """Other keys may be readable."""


class StoreClosed(StoreUnavailable):
    """The store was closed before the call, or during it; then, any other StoreUnavailable may be raised, too.

    A swap of the catalogue that was sent never raises it, as its outcome is not known.
    """

    permanent = True

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} was closed by this process; open it again")


class NotSent(StoreUnavailable):
    """A swap of the catalogue was not sent, or the store refused to process it, so the catalogue was not changed."""

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class StoreFull(StoreError):
    """The data does not fit into the store."""


class StoreMisused(StoreError):
    """The URL or an argument is wrong, or an extra is not installed."""


class CatalogueUnreadable(StoreError):
    """The catalogue is damaged, missing although the store holds releases, or from a newer hotplate.

    `record` holds its bytes if it is damaged, `now` the time of the store's clock.
    """

    def __init__(self, message: str, record: bytes | None = None, now: float = 0.0) -> None:
        super().__init__(message)
        self.record = record
        self.now = now


class WrittenByNewer(StoreError):
    """A record other than the catalogue has a format that only a newer hotplate reads. Never to be overwritten."""


class ReleaseNotFound(StoreError):
    """The store does not hold the release."""


class PartLost(ReleaseNotFound, PartUnavailable):
    """The store has lost a part of the release, or all of it; other parts may be whole, so no circuit opens."""

    permanent = True


class ReleaseConflict(StoreError):
    """The catalogue changed concurrently, or the release's state forbids the step."""


class HeldBack(ReleaseConflict):
    """A step waits for an operator's decision; a release that it has written is not live."""


class CanaryRunning(HeldBack):
    """Another release is shown to a share of the users, and activation would end that."""


class ReleaseWithdrawn(HeldBack):
    """The release was withdrawn, by services on probation or by a rollback."""


class RefusedByGates(HeldBack):
    """Gates refused the release."""


class ReleaseCorrupt(StoreError):
    """Data of a release are damaged, missing or beyond its limits."""


@dataclass(slots=True)
class SwapProgress:
    """Whether a swap of the catalogue was sent; from then on, the outcome of a failure is not known."""

    is_sent: bool = False


@contextmanager
def tracked_swap() -> Iterator[SwapProgress]:
    """Turn StoreUnavailable into NotSent until the block sets `is_sent`.

    AccessDenied and StoreThrottled remain: they, too, say that the catalogue was not changed.
    """
    progress = SwapProgress()
    try:
        yield progress
    except (NotSent, AccessDenied, StoreThrottled):
        raise
    except StoreUnavailable as error:
        if progress.is_sent:
            raise
        raise NotSent(str(error), permanent=error.permanent) from error


def reason_of(error: Exception) -> str:
    """Return the reason why a record could not be parsed."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return "it is not of the form that hotplate writes" if isinstance(error, TypeError | AttributeError) else str(error)


def did_you_mean(word: str, known: Iterable[str], alike: float = 0.6) -> str:
    """Return `did you mean data?`, or an empty text if no *known* name is as similar as *alike*, from 0 to 1."""
    nearest = get_close_matches(word, list(known), 1, alike)
    return f"did you mean {nearest[0]}?" if nearest else ""


@contextmanager
def extra_installed(extra: str) -> Iterator[None]:
    """Translate ModuleNotFoundError into StoreMisused with the command that installs *extra*, which has the module."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = install_hint(error, extra)
        if hint is None:  # a defect
            raise
        raise StoreMisused(hint) from error
