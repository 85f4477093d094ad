"""Looks for rows that a store has dropped since a release was loaded, as an evicting cache does.

Misses do not show it: they may be of unknown users. So the store is asked for the rows of the manifest's sample, of
which none may be missing but those of erased users.
"""

import logging
from collections.abc import Awaitable, Callable

from hotplate.serve.errors import ServiceFinding
from hotplate.serve.releases.erasures import KnownErasures
from hotplate.serve.releases.served import ServedRelease
from hotplate.stores.errors import HEAL, StoreError
from hotplate.stores.store import Reader

log = logging.getLogger(__name__)


class MissingRows:
    """The rows of the live release that one store has dropped."""

    def __init__(self, reader: Reader, erasures: KnownErasures, refresh: Callable[[], Awaitable[None]]) -> None:
        """*refresh* reads the catalogue, and with it *erasures*."""
        self.finding: ServiceFinding | None = None
        self._reader = reader
        self._erasures = erasures
        self._refresh = refresh

    async def look(self, live: ServedRelease | None) -> None:
        """Look for the sampled rows of the live release; log if some are missing, and if they are back."""
        reader = self._reader
        if live is None:
            return

        sample = live.manifest.sample
        try:
            missing = await reader.missing(live.ref, sample)
            if missing:
                await self._refresh()  # their users may have been erased just now
        except StoreError:  # the follower reports it
            return

        lost = [key for key in missing if not self._erasures.erased.covers(key)]
        if lost and self.finding is None:
            found = f"{len(lost)} of {len(sample)} sampled rows of release {live.id} are missing; {HEAL}"
            sentence = "; ".join([found, *await reader.warnings()])
            self.finding = ServiceFinding("missing", sentence)
            log.warning("%s", sentence)
        elif self.finding is not None and not lost:
            self.finding = None
            log.info("the sampled rows of release %s are there again", live.id)
