"""The item `state` of a release, which names its writer and says where its batches are.

The writer of a draft acknowledges each batch of rows by an item with their packed keys. The batches of one kind are a
*series*, numbered from 1 without gaps. The kinds are `rows` for part 0 of a publish, "rows-2" for part 2 and so on, and
`metas` for `meta` rows. Each writer has series of its own: the first writer's are named by their kind alone, those of
the writer that took over first "rows_1", and so on.
"""

from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.cosmos.items import AnyRef, CosmosItem, container_of, without_system_properties
from hotplate.stores.cosmos.paced_items import PacedItems
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreUnavailable
from hotplate.stores.store import not_found, sealed, taken_over

# Id of the item.
STATE = "state"

DRAFT = "draft"
SEALED = "sealed"

ROWS = "rows"
METAS = "metas"


def rows_kind(part: int) -> str:
    """Return the kind of series for the rows of a part of a publish."""
    return f"{ROWS}-{part}" if part else ROWS


class ReleaseState(msgspec.Struct, frozen=True, omit_defaults=True):
    """The fields of the item; a field is absent from it while it has its default."""

    state: str = ""
    """DRAFT or SEALED."""

    writer: str = ""
    """Token of the draft's writer."""

    claims: int = 0
    """How often a writer has taken the draft over from another."""

    former: dict[str, int] = {}
    """Numbers of the last batches of former writers, by series."""

    parts: tuple[int, ...] = ()
    """Parts other than 0 that have rows, in ascending order."""

    dropping: tuple[str, ...] = ()
    """Tokens of the erasures that are about to delete the container; a container restored from a backup lacks them."""

    @classmethod
    def of(cls, item: CosmosItem) -> "ReleaseState":
        """Decode the item; ReleaseCorrupt if it is invalid."""
        try:
            return msgspec.convert(item, cls)
        except msgspec.ValidationError as error:
            sentence = f"the item {STATE!r} of a release was not written by hotplate ({error}); publish again"
            raise ReleaseCorrupt(sentence) from error

    def item(self, stored: CosmosItem | None = None) -> CosmosItem:
        """Encode the item that replaces *stored*; fields that only *stored* has stay."""
        fields: CosmosItem = msgspec.to_builtins(self)
        return ({"id": STATE} if stored is None else stored) | fields

    @property
    def is_sealed(self) -> bool:
        """Whether the release is immutable."""
        return self.state == SEALED

    @property
    def series_names(self) -> list[str]:
        """The series of the current writer.

        `metas` comes last: it is acknowledged before other rows, so all of it is found while a writer continues.
        """
        return [self.series(kind) for kind in (*map(rows_kind, (0, *self.parts)), METAS)]

    def series(self, kind: str) -> str:
        """Return the series of a kind that the current writer continues."""
        return f"{kind}_{self.claims}" if self.claims else kind

    def series_of_all_writers(self, kind: str) -> list[str]:
        """Return the series of a kind, the current writer's first and the first writer's last."""
        return [replace(self, claims=claims).series(kind) for claims in range(self.claims, -1, -1)]

    def check_unsealed(self, draft: DraftRef) -> None:
        """Raise ReleaseConflict if the release is sealed."""
        if self.state != DRAFT:
            raise sealed(draft)

    def check_writer(self, draft: DraftRef) -> None:
        """Raise ReleaseConflict if the draft has another writer."""
        if self.writer != draft.writer:
            raise taken_over(draft)

    def taken_over_by(self, writer: str, former: dict[str, int]) -> "ReleaseState":
        """Return the state with another writer; *former* has the last batches of all series until now."""
        return replace(self, writer=writer, claims=self.claims + 1, former=former)

    def with_part(self, part: int) -> "ReleaseState":
        """Return the state with another part that has rows."""
        return replace(self, parts=tuple(sorted({*self.parts, part})))

    def marked(self, token: str) -> "ReleaseState":
        """Return the state with the mark of an erasure."""
        return replace(self, dropping=(*self.dropping, token))


ChangeState = Callable[[ReleaseState], Awaitable[ReleaseState | None]]
"""Returns the state that replaces a stored one; None if that is to stay."""


class ReleaseStates:
    """Reads and replaces the states of releases; no request is repeated.

    Raises ContainerMissing if the container of a release is missing, and ReleaseNotFound if it holds no state.
    """

    def __init__(self, items: PacedItems) -> None:
        self._items = items

    async def read(self, release: AnyRef) -> ReleaseState:
        """Return the state of a release or draft."""
        item = await self._items.read_surely(container_of(release), STATE)
        if item is None:
            raise not_found(release)
        return ReleaseState.of(item)

    async def is_in(self, container: str) -> bool:
        """Return whether a release or draft is in a container."""
        try:
            item = (await self._items.read(container, STATE)).item
        except ContainerMissing:
            return False
        return item is not None and item.get("state") in (DRAFT, SEALED)

    async def create(self, draft: DraftRef) -> bool:
        """Create the state of a new draft; return False if there is one."""
        state = ReleaseState(DRAFT, draft.writer)
        return await self._items.create(container_of(draft), state.item())

    async def change(self, release: AnyRef, change: ChangeState) -> None:
        """Read a state, and replace it by the result of *change*, None for no change.

        Raises what *change* raises, and StoreUnavailable if another process has changed the state in the meantime,
        which its etag tells: then the change may be tried again.
        """
        container = container_of(release)
        stored = await self._items.read(container, STATE)
        if stored.item is None:
            raise not_found(release)
        changed = await change(ReleaseState.of(stored.item))
        if changed is None:
            return
        item = changed.item(without_system_properties(stored.item))
        if not await self._items.replace(container, item, stored.etag):
            raise StoreUnavailable(f"other processes keep changing the state of release {release.id}; try again later")

    async def mark_dropping(self, release: ReleaseRef, token: str) -> bool:
        """Mark a state with the token of an erasure; return False for a state that is missing or cannot be decoded."""

        async def mark(state: ReleaseState) -> ReleaseState | None:
            return None if token in state.dropping else state.marked(token)

        try:
            await self.change(release, mark)
        except (ReleaseNotFound, ReleaseCorrupt):
            return False
        return True

    async def check_dropping(self, release: ReleaseRef, token: str) -> None:
        """Raise ReleaseConflict unless the state bears the mark of an erasure, or is gone."""
        try:
            item = (await self._items.read(container_of(release), STATE)).item
        except ContainerMissing:
            return
        if item is not None and token not in item.get("dropping", ()):
            raise ReleaseConflict(
                f"the container of release {release.id} was restored while it was being erased; see `hotplate releases "
                f"list`, and prune again"
            )
