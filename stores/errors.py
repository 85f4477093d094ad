"""What can go wrong with a store; each sentence says what to do.

StoreError
├── StoreUnavailable        nobody answers, or not in time
│   ├── StoreThrottled      it answers: not now
│   └── PartUnavailable     a part of it, as a partition is, does not answer; others may
├── StoreFull               what is to be written does not fit
├── StoreMisused            a wrong URL, a wrong argument, a missing extra
├── CatalogueUnreadable     the control record is there, and makes no sense
├── ReleaseNotFound         no such release, or no longer
├── ReleaseConflict         somebody else changed the catalogue first, or the release's state forbids it
└── ReleaseCorrupt          the rows do not add up to what the manifest says
"""


class StoreError(Exception):
    """Root of the tree; its text is one sentence for a human, free of secrets."""


class StoreUnavailable(StoreError):
    """The store could not be reached, or did not answer in time; trying again later may help."""


class StoreThrottled(StoreUnavailable):
    """The store asks to be left alone for `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PartUnavailable(StoreUnavailable):
    """What was asked of did not answer, in a store whose other keys may well be readable."""


class StoreFull(StoreError):
    """There is no room for what is to be written."""


class StoreMisused(StoreError):
    """The URL or an argument is wrong, or an extra is not installed: the caller's to mend."""


class CatalogueUnreadable(StoreError):
    """The catalogue exists but cannot be understood; what is being served goes on being served."""


class ReleaseNotFound(StoreError):
    """The store holds no such release, or holds it no longer."""


class ReleaseConflict(StoreError):
    """The catalogue was changed by somebody else first, or the release's state forbids the step."""


class ReleaseCorrupt(StoreError):
    """Counts, bytes or digest of the rows differ from the manifest."""
