"""The erased users that a worker knows of a store: it hides them even if the store loses their record."""

import logging

from hotplate.serve.generation import Policy
from hotplate.stores.catalogue import Catalogue, Erased
from hotplate.stores.erasure import NOBODY, ErasedUsers
from hotplate.stores.erasure_log import lost_sentence, read_erased
from hotplate.stores.store import Reader

log = logging.getLogger(__name__)


class KnownErasures:
    """The erased users of one store, to which others are only added."""

    erased = Policy[ErasedUsers]()

    def __init__(self) -> None:
        self.erased = NOBODY
        self._entry: Erased | None = None
        """The catalogue's entry of the record that was read last."""
        self._most = 0
        """The most erased users that the store has counted, without accepted losses."""
        self._lost = 0
        """How many of them the record lacks."""

    @property
    def problem(self) -> str | None:
        """How many users must be erased again, because the store has lost them."""
        return lost_sentence(self._lost) if self._lost else None

    async def update(self, reader: Reader, catalogue: Catalogue) -> None:
        """Add the users that a store has erased; log if it has lost some.

        Concurrent calls could read an older record last, in which users would seem to be lost. Raises StoreError.
        """
        entry = catalogue.erased
        known = self._entry
        if entry == known:
            return
        stored = await read_erased(reader, catalogue)
        self._entry = entry
        self.erased = self.erased.union(stored)

        if entry is not None and known is not None and entry.token == known.token_of_acceptance:
            self._most -= known.count - entry.count
        self._most = max(self._most, stored.count + stored.lost)
        lost = self._most - stored.count
        if lost and lost != self._lost:
            log.warning("%s", lost_sentence(lost))
        self._lost = lost
