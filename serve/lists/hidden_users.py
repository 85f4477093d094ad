"""Hidden users: those whose lists are not shown, because they are denied or erased. They get popular lists instead."""

from collections.abc import Sequence

from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList, EncodedLists
from hotplate.serve.metrics import Metrics
from hotplate.serve.tiers.tier import Origin, Tier
from hotplate.stores.encoding import USER, RowKey


class HiddenUsers:
    """The users that the deny-list names, or that are erased from a tier. Their rows are not read."""

    def __init__(self, tiers: Sequence[Tier], deny_list: DenyListFile, lists: EncodedLists, metrics: Metrics) -> None:
        self._tiers = tiers
        self._deny_list = deny_list
        self._lists = lists
        self._metrics = metrics

    @property
    def exist(self) -> bool:
        """Whether any user is hidden."""
        return bool(self._deny_list.current.users) or any(tier.follower.erasures.erased for tier in self._tiers)

    def is_erased(self, user: str) -> bool:
        """Return whether a user is erased from any tier, as others may be older."""
        return any(tier.follower.erasures.erased.covers_user(user) for tier in self._tiers)

    def includes(self, row: RowKey) -> bool:
        """Return whether *row* is of a hidden user."""
        if row.kind != USER:
            return False
        return row.id in self._deny_list.current.users or self.is_erased(row.id)

    def split(self, rows: Sequence[RowKey]) -> tuple[Sequence[RowKey], Sequence[RowKey]]:
        """Divide *rows* into those that may be read, and those of hidden users."""
        if not self.exist:
            return rows, ()
        shown = list[RowKey]()
        hidden = list[RowKey]()
        for row in rows:
            (hidden if self.includes(row) else shown).append(row)
        return shown, hidden

    def answer(self, row: RowKey, fallback: RowKey, origin: Origin | None = None) -> EncodedList:
        """Return the popular list *fallback* for a hidden user, as for an unknown one, and count it.

        It is of the release at *origin*, by default of the one that is served to the user. Raises NotReady.
        """
        self._metrics.count_lookup("popular", "miss")
        if origin is None:
            return self._lists.first(fallback, row, "unknown")
        return self._lists.of_release(origin.tier.name, origin.release, fallback, "unknown")
