"""Whether a store agrees with the catalogue that a worker follows: a table of states, and of what reads say.

A catalogue of a lower generation is mostly an outdated read, from a replica or a cache. It is not followed unless the
store was restored from an older copy, so a disagreement starts further reads until one settles it.
"""

import asyncio
import time
from enum import Enum


class Agreement(Enum):
    """State of the followed catalogue."""

    UNREAD = "the store was not read yet, or the last read failed"
    CONFIRMED = "the last read named the followed catalogue"
    DOUBTED = "a read named another catalogue after one that confirmed it"
    OUTDATED = "reads do not confirm it any more, and do not prove another one"
    OLDER = "the primary names an older catalogue, perhaps restored"


class ReadOutcome(Enum):
    """What a read of the catalogue says of the followed one."""

    CONFIRMED = "it is the followed one, or is followed now"
    ANOTHER = "it is another one, which was not asked for and may be an outdated read"
    FAILED = "the store could not be read"
    UNPROVEN = "only a replica answers with another one, or the live release is gone"
    EMPTY = "the store has no catalogue"
    OLDER = "the primary has an older one"


# The next state, by what a read says and the state before.
TRANSITIONS = {
    ReadOutcome.CONFIRMED: dict.fromkeys(Agreement, Agreement.CONFIRMED),
    ReadOutcome.ANOTHER: {
        Agreement.UNREAD: Agreement.OUTDATED,
        Agreement.CONFIRMED: Agreement.DOUBTED,
        Agreement.DOUBTED: Agreement.DOUBTED,
        Agreement.OUTDATED: Agreement.OUTDATED,
        Agreement.OLDER: Agreement.OLDER,
    },
    ReadOutcome.FAILED: {
        Agreement.UNREAD: Agreement.UNREAD,
        Agreement.CONFIRMED: Agreement.UNREAD,
        Agreement.DOUBTED: Agreement.OUTDATED,
        Agreement.OUTDATED: Agreement.OUTDATED,
        Agreement.OLDER: Agreement.OLDER,
    },
    ReadOutcome.UNPROVEN: dict.fromkeys(Agreement, Agreement.OUTDATED) | {Agreement.OLDER: Agreement.OLDER},
    ReadOutcome.EMPTY: dict.fromkeys(Agreement, Agreement.OUTDATED),
    ReadOutcome.OLDER: dict.fromkeys(Agreement, Agreement.OLDER),
}
# In these states the store is read again until a read settles the disagreement.
UNSETTLED = {Agreement.DOUBTED, Agreement.OUTDATED, Agreement.OLDER}
# In these states the last read that had an outcome agreed.
CURRENT = {Agreement.CONFIRMED, Agreement.DOUBTED}


class StoreAgreement:
    """The state of one store, with the times at which it changed."""

    def __init__(self) -> None:
        self.state = Agreement.UNREAD
        self._left_current_at = time.monotonic()
        self._older_since = 0.0
        """By the loop's clock, as the pauses between reads."""
        self._unsettled = asyncio.Event()

    def record_read(self, outcome: ReadOutcome) -> None:
        """Change the state by what a read of the catalogue said of the one that is followed.

        Notes the times at which it stopped to be the current one, and at which the store began to name an older one.
        In some states, the store is to be read again: then `wait_until_unsettled` returns.
        """
        before = self.state
        self.state = TRANSITIONS[outcome][before]

        if before in CURRENT and self.state not in CURRENT:
            self._left_current_at = time.monotonic()
        if self.state is Agreement.OLDER and before is not Agreement.OLDER:
            self._older_since = asyncio.get_running_loop().time()

        if self.is_unsettled:
            self._unsettled.set()
        else:
            self._unsettled.clear()

    @property
    def is_unsettled(self) -> bool:
        """Whether the store must be read again to know which catalogue to follow."""
        return self.state in UNSETTLED

    async def wait_until_unsettled(self) -> None:
        """Wait for a disagreement."""
        await self._unsettled.wait()

    @property
    def current_at(self) -> float:
        """When the followed catalogue was last the current one, by `time.monotonic`: now while it is."""
        return time.monotonic() if self.state in CURRENT else self._left_current_at

    @property
    def older_s(self) -> float:
        """Seconds since the primary names an older catalogue; 0 if it does not."""
        if self.state is not Agreement.OLDER:
            return 0.0
        return asyncio.get_running_loop().time() - self._older_since
