"""The errors of stores; each sentence says what to do.

StoreError
├── StoreUnavailable        it does not answer, or not in time
│   ├── StoreThrottled      it refuses for now, and says for how long
│   └── PartUnavailable     a part of it, such as a partition, does not answer; others may
├── StoreFull               what is to be written does not fit
├── StoreMisused            a wrong URL, a wrong argument, a missing extra
├── CatalogueUnreadable     the control record cannot be understood, or is gone
├── ReleaseNotFound         no such release, or no longer
├── ReleaseConflict         somebody else changed the catalogue first, or the release's state forbids it
│   └── HeldBack            a release stays ready: somebody has to decide first
│       ├── CanaryRunning   another one is the canary
│       └── RefusedByGates  its own gates refused it
└── ReleaseCorrupt          the rows do not add up to what the manifest says
"""

# What to do about a release that has lost rows, or of which some are damaged.
HEAL = "`hotplate releases repair` heals it from another store; or publish again"


class StoreError(Exception):
    """Root of the tree; its text is one sentence for a human, free of secrets."""


class StoreUnavailable(StoreError):
    """The store could not be reached, or did not answer in time; trying again later may help, unless `permanent`."""

    permanent = False


class StoreThrottled(StoreUnavailable):
    """The store refuses requests for now; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PartUnavailable(StoreUnavailable):
    """A part of the store did not answer; other keys may well be readable."""


class StoreFull(StoreError):
    """There is no room for what is to be written."""


class StoreMisused(StoreError):
    """The URL or an argument is wrong, or an extra is not installed: the caller must correct it."""


class CatalogueUnreadable(StoreError):
    """The catalogue cannot be understood, or it is missing although the store holds releases.

    A service goes on with the release that it serves. `record` holds the bytes that were read, or None if the store has
    none or a newer hotplate wrote them. `now` is the time of the read by the store's clock.
    """

    def __init__(self, message: str, record: bytes | None = None, now: float = 0.0) -> None:
        super().__init__(message)
        self.record = record
        self.now = now


class ReleaseNotFound(StoreError):
    """The store holds no such release, or holds it no longer."""


class ReleaseConflict(StoreError):
    """The catalogue was changed by somebody else first, or the release's state forbids the step."""


class HeldBack(ReleaseConflict):
    """A release that was to go live stays as it is, until somebody decides otherwise."""


class CanaryRunning(HeldBack):
    """Another release is the canary, and would end; the one that was to go live stays as it is."""


class RefusedByGates(HeldBack):
    """Gates refused the release when it was published, and nobody has overridden that."""


class ReleaseCorrupt(StoreError):
    """Counts, bytes or digest of the rows differ from the manifest."""


def reason_of(error: Exception) -> str:
    """Say in plain words why a record could not be read."""
    match error:
        case KeyError():
            return f"it has no {error}"
        case TypeError() | AttributeError():
            return "it is not of the form that hotplate writes"
    return str(error)
