"""Whether a store agrees with the catalogue that a worker follows, by what reads of it say.

A catalogue of a lower generation is mostly an outdated read, from a replica or a cache. It is not followed unless the
store was restored from an older copy, so a disagreement starts further reads until one settles it.
"""

import asyncio
import time
from enum import Enum, auto

from hotplate.base.timing import loop_time


class ReadOutcome(Enum):
    """What a read of the catalogue says of the followed one."""

    CONFIRMED = auto()
    """It is the followed one, or is followed now."""

    ANOTHER = auto()
    """It is another one, which was not asked for and may be an outdated read."""

    FAILED = auto()
    """The store could not be read."""

    UNPROVEN = auto()
    """Only a replica answers with another one, or the live release is gone."""

    EMPTY = auto()
    """The store has no catalogue."""

    OLDER = auto()
    """The primary has an older one, perhaps after a restore."""


class StoreAgreement:
    """Whether the followed catalogue is the current one, and since when it is not."""

    def __init__(self) -> None:
        self._is_current = False
        """Whether the last read that had an outcome agreed."""

        self._left_current_at = time.monotonic()
        self._older_since: float | None = None
        """By the loop's clock, as the pauses between reads; None unless the primary names an older catalogue."""

        self.unsettled = asyncio.Event()
        """Set while the store must be read again to know which catalogue to follow."""

    def record_read(self, outcome: ReadOutcome) -> None:
        """Note what a read of the catalogue said of the one that is followed.

        A disagreement is to be settled by further reads (`unsettled`). A failed read neither begins one nor
        settles it, and only a confirmation or an empty store ends the time since which the primary has an older one.
        """
        was_current = self._is_current
        if outcome is not ReadOutcome.ANOTHER:  # one outdated read proves nothing
            self._is_current = outcome is ReadOutcome.CONFIRMED
        if was_current and not self._is_current:
            self._left_current_at = time.monotonic()

        if outcome is ReadOutcome.CONFIRMED:
            self.unsettled.clear()
        elif outcome is not ReadOutcome.FAILED:
            self.unsettled.set()

        if outcome in (ReadOutcome.CONFIRMED, ReadOutcome.EMPTY):
            self._older_since = None
        elif outcome is ReadOutcome.OLDER and self._older_since is None:
            self._older_since = loop_time()

    @property
    def current_at(self) -> float:
        """When the followed catalogue was last the current one, by `time.monotonic`: now while it is."""
        return time.monotonic() if self._is_current else self._left_current_at

    @property
    def older_s(self) -> float:
        """Seconds since the primary names an older catalogue; 0 if it does not."""
        return 0.0 if self._older_since is None else loop_time() - self._older_since
