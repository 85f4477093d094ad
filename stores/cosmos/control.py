"""The catalogue, and the records beside it, as items of a small container, compared and set by their etags."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson

from hotplate.stores import catalogue_record
from hotplate.stores.catalogue import Catalogue
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing
from hotplate.stores.cosmos.items import CATALOGUE, CONTROL, CosmosItem, to_item, value_of
from hotplate.stores.cosmos.paced_items import PacedItems
from hotplate.stores.cosmos.signed import NearestItem, SignedClient, VersionedItem
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import RecordChange, catalogue_changed


class ControlContainer:
    """Reads and replaces the catalogue and records; no request is repeated.

    Raises StoreMisused for an account with several write regions, which cannot compare and set.
    """

    def __init__(self, shown: str, client: SignedClient, items: PacedItems, clock: Callable[[], float]) -> None:
        """*shown* names the database."""
        self._shown = shown
        self._client = client
        self._items = items
        self._clock = clock
        self._ahead_s = time.time() - clock()
        """The service's clock minus *clock*."""

    async def catalogue(self) -> Catalogue:
        """Read the catalogue in the write region. Raises CatalogueUnreadable."""
        stored = await self._read_catalogue()
        return self._parsed(stored.item, stored.now)

    async def nearest_catalogue(self) -> Catalogue:
        """Read the catalogue like a lookup, in the nearest region, which may lag; `primary` says if it is known not to.

        A missing container means that nothing was published yet. Raises CatalogueUnreadable.
        """
        try:
            nearest = await self._client.read_nearest(CONTROL, CATALOGUE, DEADLINE_S)
        except ContainerMissing:
            nearest = NearestItem(None, from_write_region=False, charge_ru=0.0)
        catalogue = self._parsed(nearest.item, self._clock() + self._ahead_s)
        return replace(catalogue, primary=nearest.from_write_region)

    async def record(self, name: str) -> bytes | None:
        """Read a record; None if it is absent."""
        try:
            item = (await self._items.read(CONTROL, name)).item
        except ContainerMissing:
            return None
        return None if item is None else value_of(item)

    async def begin_swap(self, old: Catalogue | bytes, records: Sequence[RecordChange]) -> str:
        """Write *records*, one by one, if *old* is stored, by its version or bytes; return the etag for `write`.

        It is empty for an *old* catalogue that was never stored. Raises ReleaseConflict if another one is stored,
        ContainerMissing if there is no container for *records*.
        """
        await self.check_single_write_region()  # elsewhere, If-Match would not exclude a second writer

        etag = ""
        if old != Catalogue():  # stored once
            stored = await self._read_catalogue()
            if isinstance(old, bytes):
                is_stored = stored.item is not None and _record_in(stored.item) == old
            else:
                is_stored = self._parsed(stored.item, stored.now).version == old.version
            if not is_stored:
                raise catalogue_changed()
            etag = stored.etag
        await self._write_records(records)
        return etag

    async def write(self, new: Catalogue, etag: str) -> None:
        """Replace the version *etag* of the catalogue, or create it; ReleaseConflict if another version is stored.

        ContainerMissing if there is no container for it.
        """
        await self._write({"id": CATALOGUE, "catalogue": orjson.loads(catalogue_record.dump(new))}, etag)

    async def check_single_write_region(self) -> None:
        """Raise StoreMisused for an account with several write regions."""
        account = await self._client.known_account()
        if account.multiple_write_regions:
            account = await self._client.account()  # it may have one by now
        if account.multiple_write_regions:
            raise StoreMisused(
                f"the account of {self._shown} takes writes in several regions, where two publishers could both change "
                f"the live release; turn multi-region writes off, or use another account"
            )

    async def _read_catalogue(self) -> VersionedItem:
        """Read the item of the catalogue in the write region, and the service's clock."""
        try:
            stored = await self._items.read(CONTROL, CATALOGUE)
        except ContainerMissing:
            return VersionedItem(None, "", self._clock() + self._ahead_s, 0.0)
        self._ahead_s = stored.now - self._clock()
        return stored

    def _parsed(self, item: CosmosItem | None, now: float) -> Catalogue:
        """Decode the item of the catalogue, read at *now*; CatalogueUnreadable if it is invalid."""
        if item is None:
            return Catalogue(now=now)
        return catalogue_record.parse(_record_in(item), now=now, where=self._shown)

    async def _write_records(self, records: Sequence[RecordChange]) -> None:
        """Write records beside the catalogue, one by one, each only if it still has the value that the change expects.

        A record that has the new value already was written by an earlier attempt. Raises ReleaseConflict if it has
        neither the expected nor the new value.
        """
        for change in records:
            stored = await self._items.read(CONTROL, change.name)
            value = None if stored.item is None else value_of(stored.item)
            if value == change.after:  # by an attempt whose response was lost
                continue
            if value != change.before:
                raise catalogue_changed()
            await self._write(to_item(change.name, change.after), stored.etag)

    async def _write(self, item: CosmosItem, etag: str) -> None:
        """Replace the version *etag* of an item, or create it if that is empty; ReleaseConflict for another version."""
        if etag:
            is_written = await self._items.replace(CONTROL, item, etag)
        else:
            is_written = await self._items.create(CONTROL, item)
        if not is_written:
            raise catalogue_changed()


def _record_in(item: CosmosItem) -> bytes:
    """Return the record in the item of a catalogue."""
    return orjson.dumps(item.get("catalogue"))
