"""Rows of the live release that the store has dropped since it was loaded, as an evicting cache does."""

import logging
from collections.abc import Awaitable, Callable

from hotplate.serve.releases.erasures import KnownErasures
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.tasks import repeat
from hotplate.stores.errors import HEAL, StoreError
from hotplate.stores.store import Reader

log = logging.getLogger(__name__)

# Interval of the search.
MISSING_S = 30.0


class MissingRows:
    """Looks for the sampled rows of a tier's live release.

    Misses of lookups do not show what is missing: they may be of unknown users. Rows of erased users are not missing.
    """

    def __init__(self, reader: Reader, erasures: KnownErasures, refresh: Callable[[], Awaitable[None]]) -> None:
        """*refresh* reads the catalogue, and updates *erasures*."""
        self.problem: str | None = None
        """Which rows are missing, and why."""
        self._reader = reader
        self._erasures = erasures
        self._refresh = refresh

    async def run(self, live: Callable[[], ServedRelease | None]) -> None:
        """Look every MISSING_S seconds for those of the *live* release, until cancelled."""
        await repeat(lambda: self._look(live()), MISSING_S, "looking for missing rows")

    async def _look(self, live: ServedRelease | None) -> None:
        """Log if rows are missing, and if they are back."""
        if live is None:
            return
        sample = live.manifest.sample
        try:
            missing = await self._reader.missing(live.ref, sample)
            if missing:
                await self._refresh()  # their users may have been erased just now
        except StoreError:  # reported by the task that follows changes
            return

        lost = [key for key in missing if not self._erasures.erased.covers(key)]
        if lost and self.problem is None:
            found = f"{len(lost)} of {len(sample)} sampled rows of release {live.id} are missing; {HEAL}"
            self.problem = "; ".join([found, *await self._reader.warnings()])
            log.warning("%s", self.problem)
        elif self.problem is not None and not lost:
            self.problem = None
            log.info("the sampled rows of release %s are there again", live.id)
