"""Encoded lists: from the result of a read to the list that was read, or to a popular list in its place."""

from collections.abc import Iterator, Sequence
from itertools import chain

import msgspec

from hotplate.serve.api.schemas import Status
from hotplate.serve.errors import NotReady, UnknownList
from hotplate.serve.metrics import ERROR, HIT, MISS, Metrics
from hotplate.serve.releases.served import ServedRelease, TierRelease
from hotplate.serve.tiers.lookups import is_list
from hotplate.serve.tiers.tier import Origin, Tier
from hotplate.stores.encoding import EVERYBODY, ITEM, NO_OFFSET, POPULAR, USER, RowKey, is_empty
from hotplate.stores.errors import StoreError
from hotplate.stores.store import ReadResult

OUTCOMES: dict[Status, int] = {"ok": HIT, "unknown": MISS, "error": ERROR}
# Sources of lists by the kind of their rows.
SOURCES = {USER: "personal", ITEM: "similar"}


class EncodedList(msgspec.Struct, frozen=True):
    """A list as bytes, with its tier, release and source.

    A Struct for the reason of `RowKey`.
    """

    tier: str
    release: ServedRelease
    source: str
    body: bytes
    """An opened value."""

    status: Status = "ok"
    fallback: RowKey = EVERYBODY
    """This popular list (that for everybody if the requested segment has none), or the one to fill it up."""

    @property
    def segment(self) -> str:
        """The segment of `fallback`."""
        return self.fallback.id

    @property
    def name(self) -> str:
        """The name of the list in its release; empty for a default list without one."""
        return self.fallback.list or self.release.manifest.default_list

    @property
    def popular_bodies(self) -> list[bytes]:
        """The popular lists that fill it up: of the segment, then of everybody, unless that is the same."""
        keys = dict.fromkeys((self.fallback, self.fallback.popular()))
        return [self.release.popular.get(key.text, NO_OFFSET) for key in keys]


class EncodedLists:
    """Makes the encoded list of each row from the result of its read, and counts it.

    A result is the opened list, None if the row is absent, or an error. Rows without a list get popular lists.
    """

    def __init__(self, tiers: Sequence[Tier], kept: TierRelease | None, metrics: Metrics) -> None:
        """*kept* is used while no tier serves a release."""
        self._tiers = tiers
        self._kept = kept
        self._metrics = metrics

    def first(self, fallback: RowKey, row: RowKey = EVERYBODY, status: Status = "ok") -> EncodedList:
        """Return a popular list instead of the list with the key *row*, from the first tier with a release.

        Tiers are stores in reading order. *fallback* is the key of the popular list. Without any release, the one that
        was kept from an earlier process is used; without that, raises NotReady.
        """
        for tier in self._tiers:
            release = tier.follower.release_for(row)
            if release is not None:
                return self.of_release(tier.name, release, fallback, status)
        if self._kept is not None:
            return self.of_release(self._kept.tier, self._kept.release, fallback, status)
        raise self.not_ready()

    def not_ready(self) -> NotReady:
        """Return the error for the time without a release."""
        errors = "; ".join(tier.error for tier in self._tiers if tier.error)
        return NotReady(errors or "the live release is being loaded; try again in a second")

    def _missed(self, origin: Origin, row: RowKey, result: ReadResult, fallback: RowKey) -> EncodedList:
        """Return a popular list instead of the list with the key *row*, and count the miss or the error.

        *origin* is the store and the release in which the row was read. *result* is an error, None if the row is
        absent, or an empty list. *fallback* is the key of the popular list.
        """
        status: Status = "error"
        if not isinstance(result, StoreError):
            status = "unknown"
            origin.release.tally.missed.append(row.text)  # examined by the probation of the release

        origin.tier.count_lookup(origin.release, "popular", OUTCOMES[status], row.kind)
        return self.of_release(origin.tier.name, origin.release, fallback, status)

    def unread(self, row: RowKey, fallback: RowKey) -> EncodedList:
        """Return a popular list after all tiers failed, and count it; raises NotReady."""
        encoded = self.first(fallback, row, "error")
        tier = next(tier for tier in self._tiers if tier.name == encoded.tier)
        tier.count_lookup(encoded.release, "popular", ERROR, row.kind)
        return encoded

    def hidden(self, row: RowKey, fallback: RowKey, origin: Origin | None = None) -> EncodedList:
        """Return the popular list *fallback* for a user who is denied or erased, as for an unknown one, and count it.

        It is of the release at *origin*, by default of the one that is served to the user. Raises NotReady.
        """
        self._metrics.count_lookup("popular", "miss")
        if origin is None:
            return self.first(fallback, row, "unknown")
        return self.of_release(origin.tier.name, origin.release, fallback, "unknown")

    def of_release(self, tier: str, release: ServedRelease, fallback: RowKey, status: Status) -> EncodedList:
        """Return a popular list of *release*, which answers a request for another list.

        *tier* names the store that has the release. *fallback* is the key of the popular list, of a segment (a group of
        users) and a list name. If the release lacks it, the result is the popular list for everybody; without that,
        one of any other served release, with the status `error`; an empty list if all lack it.
        """
        overall = fallback.popular()  # the key for everybody
        for name, other in chain(((tier, release),), self._all_releases()):
            for key in (fallback, overall):
                body = other.popular.get(key.text)
                if body is not None:
                    status = status if other is release else "error"
                    return EncodedList(name, other, "popular", body, status, key)
        return EncodedList(tier, release, "popular", NO_OFFSET, status, overall)

    def named(self, name: str, encoded: EncodedList) -> EncodedList:
        """Return a list that was requested by *name*, if any, and count it by that name; it may be empty.

        If the release that it was read from has another default list since, this is the popular list of *name*
        instead. Raises UnknownList if no release has the list.
        """
        if not name:
            return encoded
        if encoded.name != name or is_empty(encoded.body):
            encoded = self._popular_named(name, encoded)
        encoded.release.tally.count_named(name, OUTCOMES[encoded.status])
        return encoded

    def _popular_named(self, name: str, encoded: EncodedList) -> EncodedList:
        for tier, release in self._all_releases():
            stored = release.manifest.stored_name(name)
            if stored is not None:
                return self.of_release(tier, release, RowKey(POPULAR, encoded.segment, stored), "error")
        raise unknown_list(name, encoded.release)

    def _all_releases(self) -> Iterator[tuple[str, ServedRelease]]:
        for tier in self._tiers:
            for release in tier.follower.releases:
                yield tier.name, release

    def of_row(
        self, origin: Origin | None, row: RowKey, result: ReadResult, fallback: RowKey, source: str = ""
    ) -> EncodedList:
        """Return the list of one row, or the popular list *fallback*. Raises NotReady.

        *origin* is where the row was read, None if no tier could be read. *source* is by default that of its kind.
        """
        if origin is None:
            return self.unread(row, fallback)
        if not is_list(result):
            return self._missed(origin, row, result, fallback)
        source = source or SOURCES[row.kind]
        origin.tier.count_lookup(origin.release, source, HIT, row.kind)
        return EncodedList(origin.tier.name, origin.release, source, result, fallback=fallback)


def unknown_list(name: str, release: ServedRelease) -> UnknownList:
    """Return the error for a list that a release lacks."""
    names = filter(None, [release.manifest.default_list, *release.manifest.named])
    return UnknownList(f"release {release.id} has no list {name!r}; it has {', '.join(names) or 'no named lists'}")
