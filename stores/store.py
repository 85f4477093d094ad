"""The store contract: a backend stores opaque bytes, swaps one small catalogue by compare-and-set, and has a clock."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreMisused, StoreUnavailable

# Rows acknowledged together by a store that keeps lists of keys.
BATCH_ROWS = 1000

# The result of reading a key; None if it is absent.
ReadResult = bytes | None | StoreError

# Raises ReleaseConflict if a catalogue does not allow what a store is about to do.
CheckCatalogue = Callable[[Catalogue], None]


class Row(NamedTuple):
    """A key and its value; a tuple because releases hold millions."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Number of rows, and bytes of keys and values, of a publish; `meta` rows are not compressed."""

    rows: int
    payload_bytes: int
    meta_bytes: int = 0


class RecordChange(NamedTuple):
    """A record beside the catalogue to be written as *after*, if it is *before* (None: absent).

    *before* is compared by stores that write records ahead of the catalogue, such as Cosmos DB: a swap that will lose
    must not replace a record of the one that won. Files and Redis need not compare it, as they compare the version of
    the catalogue and write both under one lock or in one script.
    """

    name: str
    before: bytes | None
    after: bytes


class LocalRows(Protocol):
    """The rows of one release in this process."""

    @property
    def read(self) -> Callable[[bytes], bytes | None]:
        """Reads one row by the bytes of its key; load this attribute for each row, as it may change at any time.

        If it raises anything, `Reader.get` says why.
        """


class Reader(Protocol):
    """The contract for serving; an instance must not be shared by processes.

    Methods with a body are for stores that can do more; their defaults say that this one cannot.
    """

    batch: int
    """Keys that one call should carry."""

    coalesce: int
    """Keys of different requests that one call should carry; 1 if the store reads key by key."""

    is_local: bool = False
    """Whether the store is in this process, so that `get` reads one key at once."""

    poll_s: float = 1.0
    """Pause between two polls."""

    @abstractmethod
    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        """Read *keys*: one result per key, in order. A key that cannot be encoded as UTF-8 is absent.

        A store that reads key by key returns StoreUnavailable for keys without an answer after *timeout_s*, by default
        that of a write. Other stores may leave *timeout_s* to callers, who cancel the call: that ends it, and harms no
        later call. Raises ReleaseNotFound if the release is gone, PartUnavailable if other keys may be readable,
        PartLost if only the parts with *keys* may be gone, else another StoreError.
        """

    @abstractmethod
    async def catalogue(self) -> Catalogue:
        """Read the catalogue; generation 0 if nothing was ever published."""

    @abstractmethod
    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        """Read records that swaps wrote beside the catalogue, by name."""

    @abstractmethod
    async def close(self) -> None:
        """Close files and connections, which ends calls that wait for an answer. Idempotent.

        Later calls raise StoreClosed (`Store.swap` maybe NotSent), or else a store of local files opens them again.
        """

    async def poll(self) -> Catalogue:
        """Read the catalogue to follow it, by one attempt; by default as `catalogue` does. Raises StoreError."""
        return await self.catalogue()

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        """Read one key of a local store. Raises ReleaseNotFound, and ReleaseCorrupt for a damaged row."""
        del key
        raise StoreMisused(f"release {release.id} is read over a network: call get_many")

    def rows_of(self, release: ReleaseRef) -> LocalRows | None:
        """Return the rows of a release for the fast lane; None if they are read by `get` only."""
        del release
        return None

    async def warm(self, release: ReleaseRef) -> None:
        """Load a release into memory, paced: `get` must not wait for a disk."""
        del release

    def keep_open(self, releases: Sequence[ReleaseRef]) -> None:
        """Keep the releases that a service serves readable, even if they are pruned before it serves the next ones.

        Replaces those of the call before.
        """
        del releases

    @property
    def has_replicas(self) -> bool:
        """Whether a second place to read is known now, for hedged reads: replicas, or another region."""
        return False

    async def get_many_elsewhere(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float
    ) -> list[ReadResult]:
        """Read like `get_many` at another place, which may lag: a row absent there may exist."""
        del keys, timeout_s
        raise StoreUnavailable(f"release {release.id} can be read at no second place")

    async def missing(self, release: ReleaseRef, keys: Sequence[str]) -> list[str]:
        """Return those of *keys* that the store has dropped, without marking the others as used. Raises StoreError.

        For stores that may drop rows of a release on their own, as a cache does.
        """
        del release, keys
        return []

    async def warnings(self) -> list[str]:
        """Return a sentence, without secrets, per flaw. Raises StoreError."""
        return []

    async def check_size(self, release: ReleaseRef) -> None:
        """Raise ReleaseCorrupt if data were cut; must be quick."""
        del release


def not_found(release: ReleaseRef | DraftRef) -> ReleaseNotFound:
    """Return the error for a missing release."""
    return ReleaseNotFound(f"release {release.id} is not in this store")


def sealed(draft: DraftRef) -> ReleaseConflict:
    """Return the error for a write to a sealed release."""
    return ReleaseConflict(f"release {draft.id} is sealed; publish a new one")


def taken_over(draft: DraftRef) -> ReleaseConflict:
    """Return the error for a draft claimed by another writer."""
    return ReleaseConflict(f"release {draft.id} is written by another process now, which took it over")


def catalogue_changed() -> ReleaseConflict:
    """Return the error for a swap that lost against another."""
    return ReleaseConflict("another process changed the catalogue first")


async def read_one(reader: Reader, release: ReleaseRef, key: str, *, timeout_s: float | None = None) -> bytes | None:
    """Read one key; see `Reader.get_many`. Raises StoreError."""
    (result,) = await reader.get_many(release, [key], timeout_s=timeout_s)
    if isinstance(result, StoreError):
        raise result
    return result


class Store(Reader, Protocol):
    """The whole contract, for publishing and operating; a subclass that lacks a method cannot be constructed.

    Methods with a body are for stores that can do more, as those of `Reader`.

    A store repeats requests that may be sent twice, up to a time limit (0 for most calls to one Redis server), and then
    raises StoreUnavailable. It repeats neither reads with a timeout nor `poll`. The rest is repeated by callers:

        get_many with *timeout_s*    by the tiers of a service, within the time of a request
        poll                         by the follower of a service, with pauses
        swap                         by `lifecycle.revise_catalogue`, after a lost race or an unclear outcome
        renewal of a lease           by `publication.lease`, until the lease lapses
        erasure of users             by `users.erase_users`, if a failover or a publish brought rows back
    """

    is_provisioned: bool = False
    """Whether throughput is paid by the hour or request unit, so that releases are scaled."""

    erases_rows: bool = False
    """Whether `erase_rows` deletes rows of a sealed release; otherwise they stay until it is pruned."""

    @abstractmethod
    async def create(self, draft: DraftRef, plan: Plan) -> None:
        """Make room for a draft and claim it for its writer, as the first call of a handle. Idempotent.

        Later puts of an earlier writer stay invisible. Without changes, raises StoreFull, with the numbers, and
        ReleaseConflict if the release is sealed, or the earlier writer is known to be alive.
        """

    @abstractmethod
    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        """Write rows of a draft; acknowledged rows survive the writer's death. Idempotent.

        Rows of a *part* arrive in ascending order of key bytes, `meta` rows at any time in separate calls. A second
        value of a key may be refused. Raises ReleaseNotFound if the draft was erased, ReleaseConflict if it was sealed
        or claimed by another writer; so do `resume_point` and `seal`.
        """

    @abstractmethod
    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        """Return the last key of *part*, `meta` aside, known to be written."""

    @abstractmethod
    async def seal(self, draft: DraftRef) -> None:
        """Make all rows durable and the release immutable. Idempotent, for any writer.

        Must not block the event loop, which renews the lease.
        """

    @abstractmethod
    async def is_sealed(self, release: ReleaseRef) -> bool:
        """Return whether a release was sealed, even if rows are damaged; False if it is absent. Reads no rows."""

    @abstractmethod
    def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        """Yield every row of a sealed release once, in ascending order of key bytes, even without a catalogue.

        Raises ReleaseNotFound for a draft.
        """

    @abstractmethod
    async def prepare(self, release: ReleaseRef) -> None:
        """Make a sealed release ready to be live (warm, scaled). Idempotent."""

    @abstractmethod
    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        """Replace *old* by *new*, compared by `version`, even on a full store; ReleaseConflict after another swap.

        A catalogue that is unreadable is replaced by its bytes, the `record` of CatalogueUnreadable.

        *records*, of up to 2 MB, are written in the same atomic step, or else before it, in order and durably. Only
        then does a store compare what they were before: ReleaseConflict for another value, but not for the new one.

        The catalogue itself is replaced by one attempt. StoreUnavailable means that its outcome is not known, unless it
        is permanent, as AccessDenied is. NotSent and StoreThrottled mean that the catalogue was not changed (see
        `errors.tracked_swap`).
        """

    @abstractmethod
    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        """Remove all rows of an incarnation, sealed or not, paced. Idempotent.

        A server can return with older data at any moment, in which the release is live. So mark the data, or lock them;
        then read the catalogue at the same place, and call *check*, which raises ReleaseConflict unless the release may
        be erased; then delete only what is still marked or locked, again after each reconnection. If *check* raises,
        the release stays readable.
        """

    @abstractmethod
    async def incarnations(self) -> list[str]:
        """Return the incarnations with data, even without a readable catalogue."""

    async def scale_down(self, release: ReleaseRef) -> None:
        """Reduce the cost of a release until `prepare`. Idempotent; raises ReleaseNotFound."""
        del release

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str], check: CheckCatalogue) -> int:
        """Delete rows and return their number. Idempotent; raises ReleaseNotFound.

        *check* raises ReleaseConflict unless the catalogue records the rows as missing. As for `erase`, it is called
        with the catalogue of the data that the rows are deleted from.
        """
        del release, keys, check
        return 0

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        """Raise StoreFull, with the numbers, if the plan cannot fit."""
        del draft, plan

    async def check_durability(self) -> str | None:
        """Return a sentence if the store may return with older data, after a restart or a failover. Raises StoreError.

        Waits for replicas before it says that they lack something.
        """
        return None

    async def examine(self) -> "list[Finding]":
        """Check the set-up without changes. Raises StoreError."""
        return [Finding(Level.WARNING, "set-up", sentence) for sentence in await self.warnings()]

    async def check_integrity(self, release: ReleaseRef) -> None:
        """Raise ReleaseCorrupt, with the place, if bytes changed after the release was sealed."""
        del release


# The kind of a failure to get or renew a token of Entra ID.
TOKEN = "token"  # noqa: S105 -- a word


class Observer(Protocol):
    """Counts the requests of a store."""

    def charged(self, ru: float) -> None:
        """Count a response, of any status, with its request units."""

    def failed(self, kind: str) -> None:
        """Count a failed attempt, retried or not; *kind* is TOKEN, or one of a few words defined by the store."""


@dataclass(slots=True)
class ChargeCounter:
    """An Observer that sums up request units, and remembers the kinds of failed attempts."""

    ru: float = 0.0
    failures: list[str] = field(default_factory=list)

    def charged(self, ru: float) -> None:
        """See `Observer`."""
        self.ru += ru

    def failed(self, kind: str) -> None:
        """See `Observer`."""
        self.failures.append(kind)


Attribute = str | int | float | tuple[str, ...]


@dataclass(slots=True)
class TracedCall:
    """The context of a traced call as HTTP header lines, and OpenTelemetry attributes."""

    headers: bytes = b""
    attributes: dict[str, Attribute] = field(default_factory=dict)


# Set for traced calls.
traced_call = ContextVar[TracedCall | None]("traced_call", default=None)


class Level(StrEnum):
    """Severity of a finding; an ERROR has to be mended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


# The subject of the finding on the rights and the room to publish.
MAY_PUBLISH = "may publish"


class StoreUse(StrEnum):
    """What a store is used for."""

    SERVING = "serving"
    PUBLISHING = "publishing"


class Finding(NamedTuple):
    """One line of `hotplate store doctor`; the sentence says what to do unless it is OK.

    `prevents` are the uses of the store that fail; by default, all for an error, and publishing for a MAY_PUBLISH that
    is not OK.
    """

    level: Level
    subject: str
    sentence: str
    prevents: tuple[StoreUse, ...] | None = None

    @property
    def prevented(self) -> Collection[StoreUse]:
        """`prevents`, or its default."""
        if self.prevents is not None:
            return self.prevents
        if self.subject == MAY_PUBLISH and self.level is not Level.OK:
            return (StoreUse.PUBLISHING,)
        return tuple(StoreUse) if self.level is Level.ERROR else ()


async def warnings_of(reader: Reader) -> list[str]:
    """Return a store's warnings, or that they cannot be read."""
    try:
        return await reader.warnings()
    except StoreError as error:
        return [f"the store's set-up cannot be read: {error}"]
